//! The command line.

use std::path::PathBuf;

use wharf_e2e::Result;

pub struct Options {
    /// Name, address, and whether it is one of ours.
    pub endpoints: Vec<(String, String, bool)>,
    pub pids: Vec<(String, String)>,
    pub handlers: Vec<(String, String)>,
    pub host_network: Vec<String>,
    pub image: String,
    pub pull: Option<String>,
    pub rounds: usize,
    pub pods: usize,
    pub parallel: usize,
    pub growth: Vec<usize>,
    pub streams: usize,
    pub report: Option<PathBuf>,
    pub floor: bool,
    /// A list of CNI plugins whose programs are measured by themselves, and the endpoints that use it.
    pub cni: Option<PathBuf>,
    pub on_cni: Vec<String>,
}

impl Options {
    /// # Errors
    /// An unknown flag, or a value that is none for its flag.
    pub fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self {
            endpoints: vec![],
            pids: vec![],
            handlers: vec![],
            host_network: vec![],
            image: "127.0.0.1:5000/busybox:latest".into(),
            pull: None,
            rounds: 3,
            pods: 10,
            parallel: 10,
            growth: vec![1, 20, 50],
            streams: 0,
            report: None,
            floor: false,
            cni: None,
            on_cni: vec![],
        };
        let mut args = args.iter();
        while let Some(flag) = args.next() {
            if flag == "--floor" {
                options.floor = true;
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let pair = || {
                value
                    .split_once('=')
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .ok_or(format!("{flag} NAME=VALUE"))
            };
            match flag.as_str() {
                "--endpoint" | "--peer" => {
                    let (name, address) = pair()?;
                    options.endpoints.push((name, address, flag == "--endpoint"));
                }
                "--daemon-pid" => options.pids.push(pair()?),
                "--handler" => options.handlers.push(pair()?),
                "--host-network" => options.host_network.push(value.clone()),
                "--image" => options.image = value.clone(),
                "--pull" => options.pull = Some(value.clone()),
                "--rounds" => options.rounds = value.parse()?,
                "--pods" => options.pods = value.parse()?,
                "--parallel" => options.parallel = value.parse()?,
                "--growth" => {
                    options.growth = value
                        .split(',')
                        .map(str::parse)
                        .collect::<std::result::Result<_, _>>()?;
                    options.growth.sort_unstable();
                }
                "--streams" => options.streams = value.parse()?,
                "--cni" => options.cni = Some(value.into()),
                "--on-cni" => options.on_cni.push(value.clone()),
                "--report" => options.report = Some(value.into()),
                other => return Err(format!("unknown flag {other}").into()),
            }
        }
        if options.endpoints.is_empty() {
            return Err("give at least one --endpoint NAME=unix:///PATH".into());
        }
        Ok(options)
    }
}
