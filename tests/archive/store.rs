//! An object store that does what a test wants it to.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The request is refused.
    Refused,
    /// The request gets no answer.
    Silence,
    /// The request is carried out, and gets no answer.
    DoneInSilence,
}

/// Objects in memory.
#[derive(Debug, Default)]
pub(super) struct Store {
    objects: InMemory,
    requests: AtomicUsize,
    /// From which request on, and what.
    fault: std::sync::Mutex<Option<(usize, Fault)>>,
    flip: std::sync::Mutex<Option<usize>>,
    pub(super) hung: tokio::sync::Notify,
    pub(super) bytes_read: AtomicUsize,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store for tests")
    }
}

impl Store {
    /// From the request after `after` more on, everything goes wrong.
    pub(super) fn fail_after(&self, after: usize, fault: Fault) {
        let from = self.requests.load(Ordering::SeqCst) + after;
        *self.fault.lock().expect("no panic meanwhile") = Some((from, fault));
    }

    /// Nothing goes wrong any more.
    pub(super) fn mend(&self) {
        *self.fault.lock().expect("no panic meanwhile") = None;
        *self.flip.lock().expect("no panic meanwhile") = None;
    }

    /// Objects written from now on have a wrong bit in this byte.
    pub(super) fn damage_writes(&self, byte: usize) {
        *self.flip.lock().expect("no panic meanwhile") = Some(byte);
    }

    pub(super) async fn names(&self) -> Vec<Path> {
        let objects: Vec<_> = self.objects.list(None).collect().await;
        objects
            .into_iter()
            .map(|object| object.expect("listed").location)
            .collect()
    }

    /// Changes a bit of an object.
    pub(super) async fn damage(&self, name: &Path, byte: usize) {
        let object = self
            .objects
            .get(name)
            .await
            .expect("there")
            .bytes()
            .await
            .expect("bytes");
        let mut object = object.to_vec();
        object[byte] ^= 1;
        self.objects.put(name, object.into()).await.expect("takes");
    }

    pub(super) async fn remove(&self, name: &Path) {
        self.objects.delete(name).await.expect("deletes");
    }

    fn fault(&self) -> Option<Fault> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock().expect("no panic meanwhile");
        fault.filter(|(from, _)| number >= *from).map(|(_, fault)| fault)
    }

    async fn answer<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        let fault = self.fault();
        match fault {
            None => request.await,
            Some(Fault::Refused) => Err(Error::Generic {
                store: "test",
                source: "refused".into(),
            }),
            Some(Fault::Silence) => self.hang().await,
            Some(Fault::DoneInSilence) => {
                let _ = request.await;
                self.hang().await
            }
        }
    }

    async fn hang<T>(&self) -> T {
        self.hung.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let flip = *self.flip.lock().expect("no panic meanwhile");
        let payload = match flip {
            None => payload,
            Some(byte) => {
                let mut bytes: Vec<u8> = payload.iter().flatten().copied().collect();
                let place = byte % bytes.len();
                bytes[place] ^= 1;
                bytes.into()
            }
        };
        self.answer(self.objects.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.answer(self.objects.put_multipart_opts(location, opts)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let result = self.answer(self.objects.get_opts(location, options)).await?;
        let bytes = usize::try_from(result.range.end - result.range.start).expect("small");
        self.bytes_read.fetch_add(bytes, Ordering::SeqCst);
        Ok(result)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.fault() {
            None => self.objects.delete_stream(locations),
            Some(_) => locations
                .map(|_| {
                    Err(Error::Generic {
                        store: "test",
                        source: "refused".into(),
                    })
                })
                .boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
