//! Layers as compressed files.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
};

use sha2::{Digest as _, Sha256};
use wharf_proto::{
    api::{PushProgress, PushState, push_progress::Event},
    record,
};

use super::{Listener, Sent, progress};
use crate::{
    images::{
        Error, Layer, Result,
        layers::{Layers, Pin, Temporary},
        pull::blocking,
        save::{Checked, sent},
    },
    store,
};

/// gzip's level: what is sent once is not worth more time than it takes to send.
const LEVEL: u32 = 4;
/// Name of the note of what was made of a layer, in the layer's directory.
const NOTE: &str = "packed";
/// Bytes of the archive between two messages.
const STEP: u64 = 4 << 20;

/// The blob that was made of the layer the last time.
pub(super) async fn known(pin: &Pin) -> Option<Sent> {
    let path = pin.directory().join(NOTE);
    let note = blocking(move || Ok(store::read_versioned::<record::PackedLayer>(&path)?)).await;
    let note = note.ok().flatten()?;
    Some(Sent {
        digest: note.digest,
        size: note.size,
    })
}

/// Compresses a layer to a file in a directory that is removed when dropped, and notes what that made. Blocking.
///
/// # Errors
/// When the layer can't be given back, or the disk can't be written.
pub(super) fn pack(layers: &Layers, pin: &Pin, layer: &Layer, listener: &Listener) -> Result<(Temporary, File, Sent)> {
    let archive = pin.archive()?;
    let total = archive.length();
    let directory = layers.temporary()?;
    let path = directory.path().join("blob");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(Error::io("create", &path))?;
    let hashing = Hashing {
        out: BufWriter::with_capacity(256 << 10, file.try_clone().map_err(Error::io("write", &path))?),
        digest: Sha256::new(),
        size: 0,
    };
    let mut gzip = flate2::write::GzEncoder::new(hashing, flate2::Compression::new(LEVEL));
    let mut archive = Checked::new(archive, &layer.diff_id);
    let mut buffer = vec![0; 128 << 10];
    let mut done = 0;
    loop {
        let read = archive.read(&mut buffer).map_err(sent)?;
        if read == 0 {
            break;
        }
        gzip.write_all(&buffer[..read]).map_err(Error::io("write", &path))?;
        let before = done;
        done += read as u64;
        if before / STEP != done / STEP {
            let event = Event::Layer(progress(&layer.diff_id, PushState::PushCompressing, done, total));
            let told = listener.send(PushProgress { event: Some(event) });
            if told.is_err() {
                return Err(Error::ShuttingDown("push"));
            }
        }
    }
    let written = gzip.finish().and_then(|mut hashing| {
        hashing.out.flush()?;
        Ok(hashing)
    });
    let hashing = written.map_err(Error::io("write", &path))?;
    let made = Sent {
        digest: format!("sha256:{}", hex::encode(hashing.digest.finalize())),
        size: hashing.size,
    };
    let note = record::PackedLayer {
        schema: store::schema(),
        digest: made.digest.clone(),
        size: made.size,
    };
    store::write_record(&pin.directory().join(NOTE), &note)?;
    Ok((directory, file, made))
}

/// A file whose bytes are hashed on the way.
struct Hashing {
    out: BufWriter<File>,
    digest: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
