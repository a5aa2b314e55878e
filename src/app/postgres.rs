//! The private Postgres of `kiln dev`: the server programs that the host has, run on a folder of their own, so that
//! trying Kiln needs no database to be set up. It listens on a Unix socket only, and its data outlives it.
//!
//! Postgres refuses to run as root; for root it runs as the user `postgres`. The kernel stops it when `kiln dev` is
//! killed; one that was left behind even so is stopped first: whoever holds the folder's lock owns the server.

mod owner;
mod programs;

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::migrate::MigrateDatabase;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

pub use self::programs::NotInstalled;
use self::{owner::Owner, programs::Programs};

/// Name of the database and of its superuser.
const NAME: &str = "kiln";
/// What Postgres calls its socket; the number is a port only in name.
const SOCKET: &str = ".s.PGSQL.5432";
/// Longest path of a Unix socket: `sun_path` without the closing NUL, see unix(7).
const MAX_SOCKET_PATH: usize = 107;
/// Start-up includes recovery after a crash.
const START_LIMIT: Duration = Duration::from_mins(2);
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Has the kernel send its program a signal when the parent dies; of util-linux.
const SETPRIV: &str = "/usr/bin/setpriv";
const POLL: Duration = Duration::from_millis(20);

/// A running server. Call [`stop`](Self::stop) when done; a dropped one is only told to stop.
#[derive(Debug)]
pub struct DevPostgres {
    server: Child,
    url: String,
    /// Held as long as the server is ours.
    _lock: File,
}

/// Why there is no private Postgres.
#[derive(Debug, thiserror::Error)]
pub enum DevPostgresError {
    /// The programs aren't there.
    #[error(transparent)]
    NotInstalled(#[from] NotInstalled),
    /// Root runs Postgres as another user, who has to reach the folder.
    #[error(
        "Postgres can't run as root, and the user `{user}` can't enter {blocked}: choose another data folder, such as /var/lib/kiln"
    )]
    OutOfReach {
        /// Whom Postgres would run as.
        user: String,
        /// The folder on the way that is closed.
        blocked: PathBuf,
    },
    /// Neither `postgres` nor `nobody` exists.
    #[error(
        "Postgres can't run as root, and there is no user `postgres` to run it as: create one with `adduser --system postgres`"
    )]
    NoUser,
    /// The socket's path would be too long for the kernel.
    #[error(
        "{path} is too long a path for a Unix socket, the limit is {MAX_SOCKET_PATH} bytes: choose a data folder with a shorter path"
    )]
    PathTooLong {
        /// The socket.
        path: PathBuf,
    },
    /// Two at once.
    #[error("another `kiln dev`{who} uses {folder}: stop it, or choose another data folder")]
    InUse {
        /// The data folder.
        folder: PathBuf,
        /// Who holds it, as ` (process 1)`, if known.
        who: String,
    },
    /// A program ended with an error.
    #[error("{what} failed: {output}")]
    Failed {
        /// Which.
        what: &'static str,
        /// The end of its output.
        output: String,
    },
    /// It did neither start nor end.
    #[error("Postgres isn't ready after {} s; its log is {}", START_LIMIT.as_secs(), .log.display())]
    Slow {
        /// The server's log.
        log: PathBuf,
    },
    /// The operating system refused.
    #[error("{what} {}: {source}", .path.display())]
    Io {
        /// What was tried, such as `can't create`.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The server runs, and can't be used.
    #[error("the private Postgres doesn't answer: {0}")]
    Database(#[from] sqlx::Error),
}

impl DevPostgres {
    /// Starts a server on `folder/postgres`, which is created at the first start, and waits until it takes
    /// connections and has the database `kiln`.
    pub async fn start(folder: &Path) -> Result<Self, DevPostgresError> {
        fs::create_dir_all(folder).map_err(io_error("can't create", folder))?;
        let folder = &folder.canonicalize().map_err(io_error("can't open", folder))?;
        let home = folder.join("postgres");
        let socket = home.join(SOCKET);
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(DevPostgresError::PathTooLong { path: socket });
        }
        let lock = lock(folder)?;
        let owner = Owner::of_server(&home)?;
        make_home(&home, owner.as_ref())?;

        let data = home.join("data");
        let programs = Programs::find(&data)?;
        if !data.join("PG_VERSION").exists() {
            init(&programs, &home, &data, owner.as_ref()).await?;
        }
        evict(&data).await?;
        let log = home.join("log");
        let server = spawn(&programs, &home, &data, &log, owner.as_ref())?;
        let host: String = url::form_urlencoded::byte_serialize(home.as_os_str().as_encoded_bytes()).collect();
        let mut postgres = Self {
            server,
            url: format!("postgres:///{NAME}?host={host}&user={NAME}"),
            _lock: lock,
        };
        match postgres.wait_until_ready(&data, &log).await {
            Ok(()) => Ok(postgres),
            Err(error) => {
                postgres.stop().await;
                Err(error)
            }
        }
    }

    /// How to connect.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Resolves when the server has ended although nobody asked it to.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.server.wait().await
    }

    /// Stops the server: running transactions are rolled back, everything committed is kept.
    pub async fn stop(mut self) {
        // Fast shutdown, then an immediate one, which recovers at the next start.
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL] {
            self.signal(signal);
            if timeout(STOP_LIMIT, self.server.wait()).await.is_ok() {
                return;
            }
        }
    }

    async fn wait_until_ready(&mut self, data: &Path, log: &Path) -> Result<(), DevPostgresError> {
        let deadline = Instant::now() + START_LIMIT;
        while !PidFile::read(data).is_some_and(|file| file.ready && Some(file.pid.as_raw()) == self.pid()) {
            if let Ok(Some(_)) = self.server.try_wait() {
                return Err(DevPostgresError::Failed {
                    what: "starting Postgres",
                    output: tail(&fs::read(log).unwrap_or_default()),
                });
            }
            if Instant::now() > deadline {
                return Err(DevPostgresError::Slow { log: log.to_owned() });
            }
            sleep(POLL).await;
        }
        if !sqlx::Postgres::database_exists(&self.url).await? {
            sqlx::Postgres::create_database(&self.url).await?;
        }
        Ok(())
    }

    fn pid(&self) -> Option<i32> {
        self.server.id().and_then(|pid| pid.try_into().ok())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // The child isn't reaped yet, so the number is still its own; the only error left is that it has ended.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for DevPostgres {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

/// Takes the folder for this process. The kernel lets go of the lock however the process ends.
fn lock(folder: &Path) -> Result<File, DevPostgresError> {
    let path = folder.join("lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("can't open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let who = match file.read_to_string(&mut pid) {
                Ok(1..) => format!(" (process {})", pid.trim()),
                _ => String::new(),
            };
            return Err(DevPostgresError::InUse {
                folder: folder.to_owned(),
                who,
            });
        }
        Err(TryLockError::Error(source)) => return Err(io_error("can't lock", &path)(source)),
    }
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()))
        .map_err(io_error("can't write", &path))?;
    Ok(file)
}

/// Makes the server's own folder, closed to everybody else: whoever reaches the socket is trusted.
fn make_home(home: &Path, owner: Option<&Owner>) -> Result<(), DevPostgresError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(home)
        .map_err(io_error("can't create", home))?;
    let Some(owner) = owner else { return Ok(()) };
    chown(home, Some(owner.uid), Some(owner.gid)).map_err(io_error("can't change the owner of", home))?;
    fs::set_permissions(home, fs::Permissions::from_mode(0o700)).map_err(io_error("can't close", home))?;
    owner.can_reach(home)
}

/// Makes the database's files. They appear under their final name once they are complete.
async fn init(programs: &Programs, home: &Path, data: &Path, owner: Option<&Owner>) -> Result<(), DevPostgresError> {
    let new = home.join("data.new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(io_error("can't remove", &new))?;
    }
    let output = command(&programs.initdb(), home, owner)
        .arg("-D")
        .arg(&new)
        .args(["-U", NAME, "-A", "trust", "-E", "UTF8", "--no-locale"])
        .stdin(Stdio::null())
        // Ctrl-C is for kiln, which lets this short step end.
        .process_group(0)
        .output()
        .await
        .map_err(io_error("can't run", &programs.initdb()))?;
    if !output.status.success() {
        return Err(DevPostgresError::Failed {
            what: "initdb",
            output: tail(&[output.stdout, output.stderr].concat()),
        });
    }
    fs::rename(&new, data).map_err(io_error("can't rename", &new))
}

fn spawn(
    programs: &Programs,
    home: &Path,
    data: &Path,
    log: &Path,
    owner: Option<&Owner>,
) -> Result<Child, DevPostgresError> {
    let output = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(log)
        .map_err(io_error("can't write", log))?;
    let errors = output.try_clone().map_err(io_error("can't write", log))?;
    // A list with `,` between its elements; quotes keep a comma in the path from ending one.
    let folder = home.display().to_string().replace('"', "\"\"");
    let postgres = programs.postgres();
    let mut command = if Path::new(SETPRIV).exists() {
        let mut tied = command(Path::new(SETPRIV), home, owner);
        // It becomes the server, so the process and its number stay the same.
        tied.args(["--pdeathsig", "INT", "--"]).arg(&postgres);
        tied
    } else {
        command(&postgres, home, owner)
    };
    command
        .arg("-D")
        .arg(data)
        .args([
            "-p",
            "5432",
            "-c",
            "listen_addresses=",
            "-c",
            "unix_socket_permissions=0700",
        ])
        .arg("-c")
        .arg(format!("unix_socket_directories=\"{folder}\""))
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        // Out of the terminal's foreground group: Ctrl-C is for kiln, which stops the server last.
        .process_group(0)
        .spawn()
        .map_err(io_error("can't run", &postgres))
}

fn command(program: &Path, home: &Path, owner: Option<&Owner>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin")
        .current_dir(home);
    if let Some(owner) = owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    command
}

/// Ends what is left of a server whose `kiln dev` was killed. Called with the lock held, so nobody else wants it.
async fn evict(data: &Path) -> Result<(), DevPostgresError> {
    let deadline = Instant::now() + STOP_LIMIT;
    while let Some(PidFile { pid, .. }) = PidFile::read(data) {
        if !is_server(pid, data) {
            // Left by a crash. Postgres would remove it by itself, unless the number belongs to another process by now.
            let file = data.join(PidFile::NAME);
            return match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("can't remove", &file)(error)),
                _ => Ok(()),
            };
        }
        let signal = if Instant::now() < deadline {
            Signal::SIGINT
        } else {
            Signal::SIGQUIT
        };
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => sleep(POLL).await,
            Err(errno) => return Err(io_error("can't stop the server of", data)(errno.into())),
        }
    }
    Ok(())
}

/// Whether the process is a Postgres that runs on these files.
fn is_server(pid: Pid, data: &Path) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|&byte| byte == 0);
    let program = arguments.next().unwrap_or_default();
    program.ends_with(b"/postgres") && arguments.any(|argument| argument == data.as_os_str().as_encoded_bytes())
}

/// What a server writes about itself into its data folder.
struct PidFile {
    pid: Pid,
    /// Whether it takes connections.
    ready: bool,
}

impl PidFile {
    const NAME: &str = "postmaster.pid";

    /// Lines as in Postgres' `miscadmin.h`: the first is the process, the eighth the state.
    fn read(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join(Self::NAME)).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        let ready = text.lines().nth(7).is_some_and(|state| state.trim() == "ready");
        Some(Self {
            pid: Pid::from_raw(pid),
            ready,
        })
    }
}

fn tail(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join("; ")
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DevPostgresError {
    let path = path.to_owned();
    move |source| DevPostgresError::Io { what, path, source }
}
