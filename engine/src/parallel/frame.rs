//! What goes over a connection: frames with a kind, a length that is bounded, and a checksum. What arrives is taken for
//! hostile: nothing of it is believed before it is checked, and nothing is allocated by a length that it claims.
//!
//! A frame is a kind `u8`, three zero bytes, the payload's length `u32`, the CRC-32C `u32` of these eight bytes and the
//! payload, then the payload; all little-endian.

use std::io::{Error, ErrorKind, Read, Result, Write};

/// Bytes before the payload.
const HEADER: usize = 12;
/// f32 values of a [`Kind::Values`] frame at most: 1 MiB.
pub(super) const CHUNK: usize = 1 << 18;
/// Bytes of a text at most.
pub(super) const TEXT: usize = 4096;
/// Bytes of a [`Kind::Welcome`] frame at most, some thousand addresses.
const WELCOME: usize = 1 << 17;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing but a sign of life.
    Alive,
    /// A process introduces itself.
    Hello,
    /// It is taken in: which of the others it connects to, and where they listen.
    Welcome,
    /// A sum begins: its number and how many values it has, `u64` each.
    Begin,
    /// Some of its values.
    Values,
    /// What must be the same on every rank.
    Digest,
    /// It is.
    Same,
    /// A rank's run has ended early: why, and whose fault it is.
    Failed,
    /// A rank has done all that it had to do.
    Bye,
}

const KINDS: [Kind; 9] = [
    Kind::Alive,
    Kind::Hello,
    Kind::Welcome,
    Kind::Begin,
    Kind::Values,
    Kind::Digest,
    Kind::Same,
    Kind::Failed,
    Kind::Bye,
];

impl Kind {
    fn code(self) -> u8 {
        KINDS.iter().position(|kind| *kind == self).map_or(0, |i| i as u8 + 1)
    }

    /// Bytes of its payload at most.
    fn limit(self) -> usize {
        match self {
            Self::Alive | Self::Same | Self::Bye => 0,
            Self::Welcome => WELCOME,
            Self::Begin => 16,
            Self::Digest => 32,
            Self::Hello => 1024,
            Self::Failed => 5 + TEXT,
            Self::Values => 4 * CHUNK,
        }
    }
}

/// A frame that arrived whole.
#[derive(Debug, PartialEq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) payload: Vec<u8>,
}

fn broken(what: String) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// Writes a frame.
pub(super) fn write(to: &mut impl Write, kind: Kind, payload: &[u8]) -> Result<()> {
    let mut header = [0u8; HEADER];
    header[0] = kind.code();
    let length = u32::try_from(payload.len()).ok().filter(|length| *length as usize <= kind.limit());
    let length = length.ok_or_else(|| broken(format!("{} bytes are too many for {kind:?}", payload.len())))?;
    header[4..8].copy_from_slice(&length.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..8]), payload);
    header[8..].copy_from_slice(&checksum.to_le_bytes());
    to.write_all(&header)?;
    to.write_all(payload)
}

/// Reads a frame. Where the stream has a timeout, it may pass `patience` times in a row without a byte.
pub(super) fn read(from: &mut impl Read, patience: u32) -> Result<Frame> {
    let mut header = [0u8; HEADER];
    fill(from, &mut header, patience)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let kind = usize::from(header[0]).checked_sub(1).and_then(|i| KINDS.get(i)).copied();
    let Some(kind) = kind.filter(|_| header[1..4] == [0; 3]) else {
        return Err(broken(format!("sent what is no frame of halfbyte's ({:02x?})", &header[..4])));
    };
    let length = word(4) as usize;
    if length > kind.limit() {
        return Err(broken(format!("sent a {kind:?} frame of {length} bytes; it has at most {}", kind.limit())));
    }
    let mut payload = vec![0; length];
    fill(from, &mut payload, patience)?;
    match crc32c::crc32c_append(crc32c::crc32c(&header[..8]), &payload) == word(8) {
        true => Ok(Frame { kind, payload }),
        false => Err(broken(format!("sent a {kind:?} frame whose checksum is wrong: the connection changes bytes"))),
    }
}

/// Fills `bytes`. Timeouts are counted rather than the clock read, so that a job that is suspended as a whole for an hour has
/// been silent for one timeout when it goes on.
fn fill(from: &mut impl Read, mut bytes: &mut [u8], patience: u32) -> Result<()> {
    let mut silent = 0;
    while !bytes.is_empty() {
        match from.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                silent = 0;
                bytes = &mut bytes[count..];
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                silent += 1;
                if silent >= patience {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Values as bytes.
pub(super) fn to_bytes(values: &[f32], bytes: &mut Vec<u8>) {
    bytes.resize(4 * values.len(), 0);
    bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(bytes, value)| *bytes = value.to_le_bytes());
}

/// Bytes as values, as many as there are whole ones.
pub(super) fn to_values(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let mut stream = Vec::new();
        let payloads = [(Kind::Bye, vec![]), (Kind::Digest, vec![7; 32]), (Kind::Values, vec![1; 4 * CHUNK])];
        for (kind, payload) in &payloads {
            write(&mut stream, *kind, payload).unwrap();
        }
        let mut stream = stream.as_slice();
        for (kind, payload) in payloads {
            assert_eq!(read(&mut stream, 1).unwrap(), Frame { kind, payload });
        }
        assert_eq!(read(&mut stream, 1).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(write(&mut Vec::new(), Kind::Digest, &[0; 33]).is_err());
    }

    #[test]
    fn any_changed_or_missing_byte_is_an_error() {
        let mut whole = Vec::new();
        write(&mut whole, Kind::Begin, &[3; 16]).unwrap();
        for at in 0..whole.len() {
            assert!(read(&mut &whole[..at], 1).is_err(), "cut off at {at}");
            for flipped in [1, 0x10, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] ^= flipped;
                assert!(read(&mut changed.as_slice(), 1).is_err(), "{flipped:#x} at {at}");
            }
        }
        // A length is refused before anything of it is allocated or awaited.
        let mut long = whole;
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(read(&mut long.as_slice(), 1).unwrap_err().to_string().contains("at most 16"));
    }

    #[test]
    fn values_come_back_to_the_bit() {
        let values = [0.0, -0.0, 1.5, f32::MIN_POSITIVE / 2.0, f32::INFINITY, f32::from_bits(0x7fc0_1234)];
        let mut bytes = vec![9];
        to_bytes(&values, &mut bytes);
        let back: Vec<u32> = to_values(&bytes).map(f32::to_bits).collect();
        assert_eq!(back, values.map(f32::to_bits));
    }
}
