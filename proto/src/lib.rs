//! The messages and services that Wharf speaks, generated at build time from the `.proto` files beside this crate.
//!
//! - [`cri`]: the Container Runtime Interface as kubelet publishes it (`api.proto`, unchanged).
//! - [`api`]: Wharf's own service for what CRI lacks (`wharf.proto`).
//! - [`record`]: durable records of pods, containers and images (`record.proto`).
//! - [`monitor`]: what the daemon and a pod's monitor say to each other (`monitor.proto`).
//! - [`nri`] and [`ttrpc`]: the Node Resource Interface (`nri.proto`, `ttrpc.proto`).
//! - [`json`]: the proto3 JSON form of any of these messages.

#![allow(clippy::all, clippy::pedantic, missing_docs)]

mod runtime {
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}
mod wharf {
    pub mod v1 {
        tonic::include_proto!("wharf.v1");
    }
    pub mod record {
        pub mod v1 {
            tonic::include_proto!("wharf.record.v1");
        }
    }
    pub mod monitor {
        pub mod v1 {
            tonic::include_proto!("wharf.monitor.v1");
        }
    }
}

/// gRPC's health checking protocol (`health.proto`).
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}
/// What NRI plugins and the daemon say to each other (`nri.proto`).
pub mod nri {
    tonic::include_proto!("nri.pkg.api.v1alpha1");
}
/// The envelope around it (`ttrpc.proto`).
pub mod ttrpc {
    tonic::include_proto!("ttrpc");
}

pub use runtime::v1 as cri;
pub use wharf::{monitor::v1 as monitor, record::v1 as record, v1 as api};
pub mod json;
