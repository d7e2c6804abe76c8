//! An OCI runtime program as a handler.

use super::{ContainerRef, CreateRequest, Created, ExecRequest, Executed, Handler, Pending, Result};

use std::path::PathBuf;

/// An OCI runtime program such as runc.
pub struct Command {
    pub path: PathBuf,
    pub root: Option<PathBuf>,
}

impl Command {
    pub fn new(path: PathBuf, root: Option<PathBuf>) -> Command {
        Command { path, root }
    }
}

impl Handler for Command {
    fn create(&self, _request: &CreateRequest) -> Result<Pending> {
        todo!()
    }
    fn finish_create(&self, _pending: Pending) -> Result<Created> {
        todo!()
    }
    fn start(&self, _id: &str, _created: &mut Created) -> Result<Pending> {
        todo!()
    }
    fn finish_start(&self, _pending: Pending) -> Result<()> {
        todo!()
    }
    fn exec(&self, _request: &ExecRequest) -> Result<Pending> {
        todo!()
    }
    fn finish_exec(&self, _pending: Pending) -> Result<Executed> {
        todo!()
    }
    fn kill(&self, _container: &ContainerRef, _signal: i32, _all: bool) -> Result<Option<Pending>> {
        todo!()
    }
    fn finish_kill(&self, _pending: Pending) -> Result<()> {
        todo!()
    }
    fn delete(&self, _container: &ContainerRef) -> Result<Option<Pending>> {
        todo!()
    }
    fn finish_delete(&self, _pending: Pending) -> Result<()> {
        todo!()
    }
}
