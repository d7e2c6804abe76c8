//! Exec, Attach and PortForward: what is asked for is checked now, and served later under a URL (contract rule 21).

use tonic::Status;
use wharf_proto::cri::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest, PortForwardResponse,
};

use super::{Face, status::status};
use crate::{
    node::{AttachOptions, ExecOptions},
    streaming::{Error, Grant},
};

impl Face {
    pub(super) fn exec_url(&self, request: ExecRequest) -> Result<ExecResponse, Status> {
        let ExecRequest {
            container_id,
            cmd: command,
            tty,
            stdin,
            stdout,
            stderr,
        } = request;
        present("container_id", &container_id)?;
        streams(stdin, stdout, stderr, tty)?;
        if command.is_empty() {
            return Err(Status::invalid_argument("cmd is empty: there is no command to run"));
        }
        let options = ExecOptions {
            command,
            stdin,
            stdout,
            stderr,
            tty,
        };
        let id = self
            .node()?
            .check_exec(&container_id, &options)
            .map_err(|error| status(&error))?;
        let url = self.url(Grant::Exec { id, options })?;
        Ok(ExecResponse { url })
    }

    pub(super) fn attach_url(&self, request: AttachRequest) -> Result<AttachResponse, Status> {
        let AttachRequest {
            container_id,
            stdin,
            tty,
            stdout,
            stderr,
        } = request;
        present("container_id", &container_id)?;
        streams(stdin, stdout, stderr, tty)?;
        let options = AttachOptions {
            stdin,
            stdout,
            stderr,
            tty,
        };
        let id = self
            .node()?
            .check_attach(&container_id, &options)
            .map_err(|error| status(&error))?;
        let url = self.url(Grant::Attach { id, options })?;
        Ok(AttachResponse { url })
    }

    pub(super) fn port_forward_url(&self, request: PortForwardRequest) -> Result<PortForwardResponse, Status> {
        let PortForwardRequest { pod_sandbox_id, port } = request;
        present("pod_sandbox_id", &pod_sandbox_id)?;
        let mut ports = Vec::with_capacity(port.len());
        for port in port {
            match u16::try_from(port) {
                Ok(port) if port > 0 => ports.push(port),
                _ => {
                    let text = format!("port: {port} is not between 1 and 65535");
                    return Err(Status::invalid_argument(text));
                }
            }
        }
        let id = self
            .node()?
            .check_port_forward(&pod_sandbox_id)
            .map_err(|error| status(&error))?;
        let url = self.url(Grant::PortForward { id, ports })?;
        Ok(PortForwardResponse { url })
    }

    fn url(&self, grant: Grant) -> Result<String, Status> {
        self.urls()?.url(grant).map_err(|error| match error {
            Error::TooMany(_) => Status::resource_exhausted(error.to_string()),
            _ => Status::internal(error.to_string()),
        })
    }
}

fn present(field: &str, value: &str) -> Result<(), Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is missing")));
    }
    Ok(())
}

/// Section "Error contract" of the CRI reference.
fn streams(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> Result<(), Status> {
    if tty && stderr {
        return Err(Status::invalid_argument(
            "tty and stderr exclude each other: a terminal has one output",
        ));
    }
    if !(stdin || stdout || stderr) {
        return Err(Status::invalid_argument(
            "at least one of stdin, stdout and stderr must be set",
        ));
    }
    Ok(())
}
