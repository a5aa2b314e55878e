//! A service that takes logs, and misbehaves when it is told to. What it holds of a step's log only ever grows at its
//! end, and what it is sent twice must be the same.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use kiln_agent::wire::push::{MAX_PUSH, PRINTED, Printed, Seal};

pub(crate) const TOKEN: &str = "t0ken";

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is answered as it should.
    Well,
    /// The connection ends before the request was looked at.
    CutBefore,
    /// Its bytes are stored, and the connection ends.
    CutAfter,
    /// The answer comes late.
    Late,
    /// Only the first frames are stored.
    Some,
    /// Refused for now, with a time to wait.
    Busy,
    /// Refused for good.
    Over,
    /// Refused for its length.
    TooLarge,
}

#[derive(Default)]
pub(crate) struct State {
    /// What is held of each step's log.
    pub(crate) logs: BTreeMap<String, Vec<u8>>,
    pub(crate) seals: BTreeMap<String, Seal>,
    /// How much of each step was printed, by its last push.
    pub(crate) printed: BTreeMap<String, Printed>,
    /// Whether builds are to end.
    pub(crate) cancel: bool,
    /// What happens to the next requests; later ones go well.
    pub(crate) turns: VecDeque<Turn>,
    /// What happens to requests once these turns are used up.
    pub(crate) otherwise: Option<Turn>,
    /// Steps and offsets of the pushes that held nothing.
    pub(crate) heartbeats: Vec<(String, u64)>,
    pub(crate) requests: usize,
}

/// The service, as long as the test lives.
pub(crate) struct LogServer {
    address: String,
    state: Arc<Mutex<State>>,
}

impl LogServer {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for connection in listener.incoming() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(&connection.unwrap(), &state));
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/internal/v1/attempts/7/log", self.address)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What is held of a step's log.
    pub(crate) fn log(&self, step: &str) -> Vec<u8> {
        self.state().logs.get(step).cloned().unwrap_or_default()
    }

    pub(crate) fn seal(&self, step: &str) -> Option<Seal> {
        self.state().seals.get(step).copied()
    }
}

fn serve(mut stream: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = Request::read(&mut reader) {
        let turn = {
            let mut state = state.lock().unwrap();
            state.requests += 1;
            let otherwise = state.otherwise.unwrap_or(Turn::Well);
            state.turns.pop_front().unwrap_or(otherwise)
        };
        let (status, body) = match turn {
            Turn::CutBefore => return,
            Turn::CutAfter => {
                take(&request, state, false);
                return;
            }
            Turn::Late => {
                thread::sleep(Duration::from_millis(30));
                take(&request, state, false)
            }
            Turn::Well => take(&request, state, false),
            Turn::Some => take(&request, state, true),
            Turn::Busy => (503, String::from("{}")),
            Turn::Over => (404, String::from("{}")),
            Turn::TooLarge => (413, String::from("{}")),
        };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nretry-after: 0\r\ncontent-type: application/json\r\n\r\n{body}"
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Stores what a request brings, as the service does it.
fn take(request: &Request, state: &Mutex<State>, only_some: bool) -> (u16, String) {
    let mut state = state.lock().unwrap();
    let cancel = state.cancel;
    if let Some(printed) = request.printed {
        state.printed.insert(request.step.clone(), printed);
    }
    let held = state.logs.entry(request.step.clone()).or_default();
    let behind = |held: usize| (409, format!(r#"{{"code":"log_offset","offset":{held}}}"#));
    let Some(offset) = request.offset else {
        let seal: Seal = serde_json::from_slice(&request.body).unwrap();
        let length = held.len();
        if (length as u64) < seal.bytes {
            return behind(length);
        }
        state.seals.insert(request.step.clone(), seal);
        return (200, format!(r#"{{"offset":{length},"cancel":{cancel}}}"#));
    };
    assert!(request.body.len() <= MAX_PUSH);
    assert!(request.body.is_empty() || request.body.ends_with(b"\n"), "whole frames");
    if offset > held.len() {
        return behind(held.len());
    }
    let mut body = &request.body[..];
    if only_some && let Some(end) = body.iter().position(|&byte| byte == b'\n') {
        body = &body[..=end];
    }
    let known = body.len().min(held.len() - offset);
    assert!(
        held[offset..offset + known] == body[..known],
        "sent again, and not the same"
    );
    held.extend_from_slice(&body[known..]);
    let length = held.len();
    if request.body.is_empty() {
        state.heartbeats.push((request.step.clone(), offset as u64));
    }
    (200, format!(r#"{{"offset":{length},"cancel":{cancel}}}"#))
}

struct Request {
    step: String,
    /// None for a seal.
    offset: Option<usize>,
    printed: Option<Printed>,
    body: Vec<u8>,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> Option<Self> {
        let mut first = String::new();
        reader.read_line(&mut first).ok().filter(|&count| count > 0)?;
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|&count| count > 0)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let mut body = vec![
            0;
            headers
                .get("content-length")
                .map_or(0, |length| length.parse().unwrap())
        ];
        reader.read_exact(&mut body).ok()?;
        if headers
            .get("content-encoding")
            .is_some_and(|encoding| encoding == "zstd")
        {
            body = zstd::decode_all(&body[..]).unwrap();
        }
        assert_eq!(headers["authorization"], format!("Bearer {TOKEN}"));
        let target = first.strip_prefix("POST ").unwrap().split(' ').next().unwrap();
        let (path, query) = target.split_once('?').unwrap();
        let values: BTreeMap<_, _> = query.split('&').map(|pair| pair.split_once('=').unwrap()).collect();
        let offset = values.get("offset").map(|offset| offset.parse().unwrap());
        let expected = if offset.is_some() { "/log" } else { "/log/seal" };
        assert_eq!(path, format!("/internal/v1/attempts/7{expected}"));
        Some(Self {
            step: values["step"].to_owned(),
            offset,
            printed: headers.get(PRINTED).map(|printed| printed.parse().unwrap()),
            body,
        })
    }
}
