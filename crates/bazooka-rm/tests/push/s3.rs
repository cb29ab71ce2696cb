//! An S3 server of a test's own (s3s over a folder), which can be shut, or made to hold what is asked of it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::rig::Setup;

/// The server.
pub struct S3 {
    dir: TempDir,
    port: u16,
    serving: Option<JoinHandle<()>>,
    /// Writes of names that have this in them get no answer while it is set.
    held: watch::Sender<Option<&'static str>>,
    /// What was asked for while held.
    pub waiting: Arc<Mutex<Vec<String>>>,
}

impl S3 {
    pub async fn start() -> S3 {
        let dir = tempfile::Builder::new().prefix("bazooka-s3-").tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("bucket")).expect("made");
        let (held, _) = watch::channel(None);
        let mut server = S3 { dir, port: 0, serving: None, held, waiting: Arc::default() };
        server.open().await;
        server
    }

    /// Takes connections (again).
    pub async fn open(&mut self) {
        let service = {
            let fs = s3s_fs::FileSystem::new(self.dir.path()).expect("a folder");
            let mut service = S3ServiceBuilder::new(fs);
            service.set_auth(SimpleAuth::from_single("key", "secret"));
            service.build().into_shared()
        };
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("a port");
        self.port = listener.local_addr().expect("bound").port();
        let (held, waiting) = (self.held.subscribe(), self.waiting.clone());
        self.serving = Some(tokio::spawn(async move {
            // Connections end with the server.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (service, held, waiting) = (service.clone(), held.clone(), waiting.clone());
                open.spawn(async move {
                    let service =
                        hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                            let (service, mut held, waiting) =
                                (service.clone(), held.clone(), waiting.clone());
                            async move {
                                let path = request.uri().path().to_owned();
                                let writes = request.method() == hyper::Method::PUT;
                                let is_held = |held: &Option<&str>| {
                                    writes && held.is_some_and(|word| path.contains(word))
                                };
                                if is_held(&held.borrow()) {
                                    waiting.lock().expect("no holder of this lock panics").push(path.clone());
                                }
                                let _ = held.wait_for(|held| !is_held(held)).await;
                                hyper::service::Service::call(&service, request).await
                            }
                        });
                    let _ = Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }));
    }

    /// Refuses connections, and breaks those that are open.
    pub async fn shut(&mut self) {
        let serving = self.serving.take().expect("it serves");
        serving.abort();
        let _ = serving.await;
    }

    /// Holds writes of names with this in them from now on; none: lets all go.
    pub fn hold(&self, word: Option<&'static str>) {
        self.held.send_replace(word);
    }

    /// What is stored below a folder of the bucket.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join("bucket/cluster").join(name)
    }

    /// How an rm uses it.
    pub fn setup(&self) -> Setup {
        Setup {
            args: vec!["--storage".into(), "s3://bucket/cluster".into()],
            envs: vec![
                ("AWS_ACCESS_KEY_ID", "key".into()),
                ("AWS_SECRET_ACCESS_KEY", "secret".into()),
                ("AWS_REGION", "anywhere".into()),
                ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)),
            ],
            ..Setup::default()
        }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
    }
}
