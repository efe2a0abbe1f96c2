//! A real `MariaDB` on db1 and its clients.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::article::DB1;
use crate::lab::{self, Host, Process};
use crate::wait;

const USER: &str = "app";
const PASSWORD: &str = "seaworthy";

/// What the server does first: a user who may come from anywhere (the firewall decides who can), a table.
pub(crate) const CONTENT: &str = "\
CREATE DATABASE shop;
CREATE TABLE shop.orders (id INT PRIMARY KEY, item VARCHAR(40));
INSERT INTO shop.orders VALUES (1, 'brass bell'), (2, 'oak oar');
CREATE USER 'app'@'%' IDENTIFIED BY 'seaworthy';
GRANT SELECT ON shop.* TO 'app'@'%';
";

/// The command line of a query through `gateway`.
pub fn client(gateway: &str, query: &str) -> Vec<String> {
    let words = [
        "mariadb",
        "--no-defaults",
        "-h",
        gateway,
        "-u",
        USER,
        "--password=seaworthy",
        "--connect-timeout=1",
        "-t",
        "-e",
        query,
    ];
    words.map(str::to_owned).to_vec()
}

/// A data directory being prepared.
pub struct Prepared {
    installer: Child,
    folder: TempDir,
}

/// A running server.
pub struct Database {
    socket: PathBuf,
    // Runs until this value is dropped, and its data is removed after it.
    _server: Process,
    _folder: TempDir,
}

impl Database {
    /// Begins to make a data directory, in the background.
    pub fn prepare() -> Result<Prepared> {
        let folder = lab::folder()?;
        let installer = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--user=root", "--skip-test-db"])
            .arg("--auth-root-authentication-method=normal")
            .arg(format!("--datadir={}", folder.path().join("data").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("run mariadb-install-db")?;
        Ok(Prepared { installer, folder })
    }

    /// The command line that lists, on db1 itself, where clients come from.
    pub fn who_is_connected(&self) -> Vec<String> {
        let query = "SELECT user, host FROM information_schema.processlist WHERE user = 'app'";
        let socket = format!("--socket={}", self.socket.display());
        ["mariadb", "--no-defaults", &socket, "-t", "-e", query].map(str::to_owned).to_vec()
    }
}

impl Prepared {
    /// Starts the server on `host` and waits until it answers there.
    pub fn start(self, host: &Host) -> Result<Database> {
        let Self { installer, folder } = self;
        let output = installer.wait_with_output().context("wait for mariadb-install-db")?;
        if !output.status.success() {
            bail!("mariadb-install-db: {}", String::from_utf8_lossy(&output.stderr));
        }
        let (socket, content) = (folder.path().join("socket"), folder.path().join("content.sql"));
        std::fs::write(&content, CONTENT).context("write the database's content")?;
        let mut server = host.spawn(&[
            "mariadbd",
            "--no-defaults",
            "--user=root",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--performance-schema=OFF",
            "--innodb-buffer-pool-size=16M",
            "--innodb-flush-log-at-trx-commit=0",
            &format!("--bind-address={DB1}"),
            &format!("--datadir={}", folder.path().join("data").display()),
            &format!("--pid-file={}", folder.path().join("pid").display()),
            &format!("--socket={}", socket.display()),
            &format!("--init-file={}", content.display()),
        ])?;
        server.wait_for("ready for connections", Duration::from_secs(30))?;
        ensure!(server.ended()?.is_none(), "the database ended: {}", server.output());
        Ok(Database { socket, _server: server, _folder: folder })
    }
}

/// A session that stays open.
pub struct Session {
    client: Process,
    queries: usize,
}

impl Session {
    /// Opens a session through `gateway` and awaits its first answer.
    pub fn open(host: &Host, gateway: &str) -> Result<Self> {
        let password = format!("--password={PASSWORD}");
        let client = host.spawn(&[
            "mariadb",
            "--no-defaults",
            "-h",
            gateway,
            "-u",
            USER,
            &password,
            "--batch",
            "--skip-column-names",
            "--unbuffered",
            "--skip-reconnect",
        ])?;
        let mut session = Self { client, queries: 0 };
        session.expect_answer()?;
        Ok(session)
    }

    fn ask(&mut self) -> Result<String> {
        self.queries += 1;
        let marker = format!("answer-{}", self.queries);
        self.client.send(&format!("SELECT '{marker}';\n"))?;
        Ok(marker)
    }

    /// Sends a query that must be answered.
    pub fn expect_answer(&mut self) -> Result<()> {
        let marker = self.ask()?;
        self.client.wait_for(&marker, Duration::from_secs(5))
    }

    /// Sends a query that must not be answered.
    pub fn expect_silence(&mut self, span: Duration) -> Result<()> {
        let marker = self.ask()?;
        let client = &self.client;
        wait::holds_for("no answer in the session that was cut", span, || {
            Ok(!client.output().lines().any(|line| line == marker))
        })
    }
}
