//! What a Service is in a cluster: one address at which pods reach whichever replica lives.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use super::variable;

type Replicas = Arc<Mutex<Vec<String>>>;

/// Passes connections on to replicas, each to the next one that takes it.
pub(in crate::cluster) struct Entrance {
    address: SocketAddr,
    replicas: Replicas,
    _task: AbortOnDropHandle<()>,
}

impl Entrance {
    /// Listens where pods reach the machine that the tests run on.
    pub(super) async fn open() -> Self {
        let host = variable("KILN_TEST_HOST_IP");
        let listener = TcpListener::bind((host.as_str(), 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let replicas = Replicas::default();
        let task = tokio::spawn(pass_on(listener, Arc::clone(&replicas)));
        Self {
            address,
            replicas,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Its URL.
    pub(in crate::cluster) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Leads to this replica, too, as long as it lives.
    pub(super) fn add(&self, address: &str) {
        self.replicas
            .lock()
            .expect("no panic meanwhile")
            .push(address.to_owned());
    }
}

async fn pass_on(listener: TcpListener, replicas: Replicas) {
    let turn = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    while let Ok((mut caller, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (replicas, turn) = (Arc::clone(&replicas), Arc::clone(&turn));
        connections.spawn(async move {
            let all = replicas.lock().expect("no panic meanwhile").clone();
            let first = turn.fetch_add(1, Ordering::Relaxed);
            for offset in 0..all.len() {
                if let Ok(mut replica) = TcpStream::connect(&all[(first + offset) % all.len()]).await {
                    // Whichever side breaks off, the other sees it.
                    let _ = copy_bidirectional(&mut caller, &mut replica).await;
                    return;
                }
            }
        });
    }
}
