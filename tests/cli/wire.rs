//! A connection between the client and the service that breaks when a test wants it to.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::service::TestApp;

/// What stands between the client and the service, and breaks.
pub(super) struct Wire {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Where the service is; `None` while it is away.
    service: Option<SocketAddr>,
    /// After how many bytes of a stream the next connections are cut.
    cuts: Vec<usize>,
    /// How many streams were opened.
    streams: usize,
}

impl Wire {
    pub(super) async fn to(app: &TestApp, cuts: &[usize]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let mut cuts = cuts.to_vec();
        cuts.reverse();
        let state = Arc::new(Mutex::new(State {
            service: Some(address(app)),
            cuts,
            streams: 0,
        }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, Arc::clone(&shared)));
            }
        });
        Self { url, state }
    }

    /// Streams that are open stay so; whatever else is asked meanwhile finds nobody.
    pub(super) fn set(&self, service: Option<SocketAddr>) {
        self.state.lock().expect("sound").service = service;
    }

    pub(super) fn streams(&self) -> usize {
        self.state.lock().expect("sound").streams
    }
}

pub(super) fn address(app: &TestApp) -> SocketAddr {
    app.base().trim_start_matches("http://").parse().expect("an address")
}

/// Carries one connection until either end is gone or it is to be cut.
async fn carry(mut client: TcpStream, state: Arc<Mutex<State>>) {
    let service = state.lock().expect("sound").service;
    let Some(service) = service else { return };
    let Ok(mut service) = TcpStream::connect(service).await else {
        return;
    };
    let (mut there, mut back) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    // Bytes that may still pass, once a stream was asked for on this connection.
    let mut left: Option<usize> = None;
    loop {
        tokio::select! {
            read = client.read(&mut there) => {
                let Ok(read @ 1..) = read else { return };
                if state.lock().expect("sound").service.is_none() {
                    return;
                }
                if String::from_utf8_lossy(&there[..read]).contains("/events ") {
                    let mut state = state.lock().expect("sound");
                    state.streams += 1;
                    left = state.cuts.pop();
                }
                if service.write_all(&there[..read]).await.is_err() {
                    return;
                }
            }
            read = service.read(&mut back) => {
                let Ok(read @ 1..) = read else { return };
                let passed = left.map_or(read, |left| left.min(read));
                if client.write_all(&back[..passed]).await.is_err() || left == Some(passed) {
                    return;
                }
                left = left.map(|left| left - passed);
            }
        }
    }
}
