//! The browser's private file system (OPFS): folders, and files that a worker reads and writes in place.
//!
//! By its synchronous handles, which only a worker has: a download is appended to, and a tensor read, without a copy of the
//! whole file, which the crates that wrap the asynchronous half of the interface would make.

use std::io;

use halfbyte::files::Source;
use js_sys::{JsString, Reflect};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{
    FileSystemDirectoryHandle, FileSystemFileHandle, FileSystemGetDirectoryOptions, FileSystemGetFileOptions,
    FileSystemReadWriteOptions, FileSystemRemoveOptions, FileSystemSyncAccessHandle,
};

use crate::error::{Error, Result, said};
use crate::port;

/// A folder.
#[derive(Clone)]
pub(crate) struct Folder(FileSystemDirectoryHandle);

impl Folder {
    /// The site's own root.
    pub(crate) async fn root() -> Result<Self> {
        let failed = |error: JsValue| Error::storage("it does not open", &error);
        let storage = port::scope().navigator().storage();
        if storage.is_undefined() {
            return Err(Error::storage("there is none", &"it needs a secure context".into()));
        }
        Ok(Self(JsFuture::from(storage.get_directory()).await.map_err(failed)?.unchecked_into()))
    }

    /// A folder in it, made where it is missing.
    pub(crate) async fn folder(&self, name: &str) -> Result<Self> {
        let options = FileSystemGetDirectoryOptions::new();
        options.set_create(true);
        let handle = JsFuture::from(self.0.get_directory_handle_with_options(name, &options)).await;
        Ok(Self(handle.map_err(|e| Error::storage(&format!("folder {name}"), &e))?.unchecked_into()))
    }

    /// A folder in it, where there is one.
    pub(crate) async fn existing(&self, name: &str) -> Option<Self> {
        JsFuture::from(self.0.get_directory_handle(name)).await.ok().map(|handle| Self(handle.unchecked_into()))
    }

    /// Opens a file, made where it is missing. A file is open once at a time.
    pub(crate) async fn open(&self, name: &str) -> Result<OpenFile> {
        let options = FileSystemGetFileOptions::new();
        options.set_create(true);
        OpenFile::open(JsFuture::from(self.0.get_file_handle_with_options(name, &options)).await, name).await
    }

    /// A file's bytes, where there is one.
    pub(crate) async fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let handle = JsFuture::from(self.0.get_file_handle(name)).await;
        if handle.is_err() {
            return Ok(None);
        }
        let file = OpenFile::open(handle, name).await?;
        let mut bytes = vec![0; file.len() as usize];
        file.read_at(0, &mut bytes).map_err(|e| Error::storage(name, &e.to_string().into()))?;
        Ok(Some(bytes))
    }

    /// Writes a file.
    pub(crate) async fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = self.open(name).await?;
        file.truncate(0)?;
        file.append(bytes)?;
        file.flush()
    }

    /// Removes a file or a folder, where there is one.
    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let options = FileSystemRemoveOptions::new();
        options.set_recursive(true);
        match JsFuture::from(self.0.remove_entry_with_options(name, &options)).await {
            Err(error) if error_name(&error) != "NotFoundError" => {
                Err(Error::storage(&format!("removing {name}"), &error))
            }
            _ => Ok(()),
        }
    }

    /// The names in it.
    pub(crate) async fn names(&self) -> Result<Vec<String>> {
        let failed = |error: JsValue| Error::storage("listing a folder", &error);
        let (keys, mut names) = (self.0.keys(), Vec::new());
        loop {
            let next = JsFuture::from(keys.next().map_err(failed)?).await.map_err(failed)?;
            if Reflect::get(&next, &"done".into()).is_ok_and(|done| done.is_truthy()) {
                return Ok(names);
            }
            let value = Reflect::get(&next, &"value".into()).map_err(failed)?;
            names.extend(value.dyn_ref::<JsString>().map(String::from));
        }
    }
}

fn error_name(error: &JsValue) -> String {
    Reflect::get(error, &"name".into()).ok().and_then(|name| name.as_string()).unwrap_or_default()
}

/// A file that is open until it is dropped.
pub(crate) struct OpenFile {
    handle: FileSystemSyncAccessHandle,
    name: String,
}

impl OpenFile {
    async fn open(found: std::result::Result<JsValue, JsValue>, name: &str) -> Result<Self> {
        let failed = |error: JsValue| Error::storage(&format!("opening {name}"), &error);
        let file: FileSystemFileHandle = found.map_err(failed)?.unchecked_into();
        let handle = JsFuture::from(file.create_sync_access_handle()).await.map_err(failed)?;
        Ok(Self { handle: handle.unchecked_into(), name: name.to_string() })
    }

    fn failed(&self, error: &JsValue) -> Error {
        Error::storage(&self.name, error)
    }

    /// Writes behind the last byte.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<()> {
        let options = FileSystemReadWriteOptions::new();
        options.set_at(self.len() as f64);
        let written = self.handle.write_with_u8_array_and_options(bytes, &options).map_err(|e| self.failed(&e))?;
        match written as usize == bytes.len() {
            true => Ok(()),
            false => Err(self.failed(&"it is full".into())),
        }
    }

    /// Cuts it to a length.
    pub(crate) fn truncate(&self, length: u64) -> Result<()> {
        self.handle.truncate_with_f64(length as f64).map_err(|e| self.failed(&e))
    }

    /// Makes what was written last.
    pub(crate) fn flush(&self) -> Result<()> {
        self.handle.flush().map_err(|e| self.failed(&e))
    }
}

impl Source for OpenFile {
    fn len(&self) -> u64 {
        self.handle.get_size().map_or(0, |size| size as u64)
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let options = FileSystemReadWriteOptions::new();
        options.set_at(at as f64);
        let read = self.handle.read_with_u8_array_and_options(into, &options);
        match read.map_err(|e| io::Error::other(said(&e)))? as usize {
            read if read == into.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.handle.close();
    }
}
