//! What a script hands over, as serde reads it: a line `key<TAB>value` each, `outer.inner` for what lies inside of something.
//!
//! The script has read the JSON already, as every browser can. A JSON reader in here would weigh more than the memory plan.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::{self, Display};

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

/// Why something cannot be read. It says nothing of the kind of value that was found but its text: serde's own words
/// would bring along the printing of floats.
#[derive(Debug)]
pub(crate) struct Error(String);

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!("must be {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!("must be {expected}"))
    }
}

/// A key, and its value or the path of what lies deeper.
#[derive(Clone, Copy)]
struct Entry<'a> {
    key: &'a str,
    value: Result<&'a str, &'a str>,
}

/// Everything below `inside`, which is empty or ends in a dot.
#[derive(Clone, Copy)]
pub(crate) struct Lines<'a> {
    text: &'a str,
    inside: &'a str,
}

impl<'a> Lines<'a> {
    /// All that is in a text.
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, inside: "" }
    }

    /// What lies inside of a thing, named with a dot at the end.
    pub(crate) fn inside(self, inside: &'a str) -> Self {
        Self { inside, ..self }
    }

    /// The keys inside and their values; of what lies deeper only the outermost key and its path, again and again.
    fn entries(self) -> impl Iterator<Item = Entry<'a>> {
        self.text.split('\n').filter_map(move |line| {
            let (path, value) = line.split_once('\t')?;
            let key = path.strip_prefix(self.inside)?;
            Some(match key.find('.') {
                None => Entry { key, value: Ok(value) },
                Some(dot) => Entry { key: key.get(..dot)?, value: Err(path.get(..self.inside.len() + dot + 1)?) },
            })
        })
    }

    /// Whether there is nothing inside.
    pub(crate) fn is_empty(self) -> bool {
        self.entries().next().is_none()
    }

    /// The value of a key.
    pub(crate) fn get(self, key: &str) -> Option<&'a str> {
        self.entries().find(|entry| entry.key == key).and_then(|entry| entry.value.ok())
    }
}

impl<'de> Deserializer<'de> for Lines<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Map { entries: self.entries(), lines: self, last: None })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

struct Map<'de, I> {
    entries: I,
    lines: Lines<'de>,
    last: Option<Entry<'de>>,
}

impl<'de, I: Iterator<Item = Entry<'de>>> MapAccess<'de> for Map<'de, I> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let before = self.last.map(|entry| entry.key);
        self.last = self.entries.find(|entry| entry.value.is_ok() || Some(entry.key) != before);
        self.last.map(|entry| seed.deserialize(StrDeserializer::new(entry.key))).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(Entry { key, value }) = self.last else { return Err(Error(String::new())) };
        match value {
            Ok(text) => seed.deserialize(Word(text)).map_err(|error| Error(format!("`{key}` is {text}: it {error}"))),
            Err(path) => seed.deserialize(self.lines.inside(path)),
        }
    }
}

/// A value: a number, `true`, `false`, `null`, words, or a list of words with commas between.
struct Word<'de>(&'de str);

impl<'de> IntoDeserializer<'de, Error> for Word<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Word<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            text => match text.parse() {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => visitor.visit_borrowed_str(text),
            },
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0 == "null" { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        StrDeserializer::new(self.0).deserialize_enum(name, variants, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Words(self.0.split(',')))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct map
        struct identifier
    }
}

struct Words<'de>(core::str::Split<'de, char>);

impl<'de> SeqAccess<'de> for Words<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let word = self.0.by_ref().map(str::trim).find(|word| !word.is_empty());
        word.map(|word| seed.deserialize(Word(word))).transpose()
    }
}
