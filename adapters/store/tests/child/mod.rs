//! A test of the same program as a process of its own: to be killed, or to hold a lock.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader},
    process::{ChildStdout, Command, Stdio},
};

pub(crate) struct Child {
    pub(crate) process: std::process::Child,
    output: BufReader<ChildStdout>,
}

/// Runs a function that is no test, with a path, and waits until it says that it is ready.
pub(crate) fn child(function: &str, path: impl AsRef<OsStr>) -> Child {
    let mut process = Command::new(env::current_exe().unwrap())
        .args([function, "--exact", "--nocapture", "--test-threads=1"])
        .env("STORE_TEST_PATH", path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    let mut child = Child { process, output };
    while child.line().expect("it ends before it is ready") != "ready" {}
    child
}

impl Child {
    /// None once it has ended.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let len = self.output.read_line(&mut line).unwrap();
        (len > 0).then(|| line.trim_end().to_owned())
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
