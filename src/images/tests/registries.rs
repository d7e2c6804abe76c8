//! What the node's files say about registries: `hosts.toml`, `registries.conf`, proxies.

use std::{fs, sync::Arc};

use wharf_proto::cri::AuthConfig;

use super::super::{
    ErrorKind,
    testing::{Lab, Reply, Seen, Server, small},
};

/// A room with a tree and a `registries.conf` of its own below its directory.
async fn lab() -> Lab {
    let name = format!("wharf-reg-{}-{:?}", std::process::id(), std::thread::current().id());
    let files = std::env::temp_dir().join(name.replace(['(', ')'], ""));
    let _ = fs::remove_dir_all(&files);
    Lab::new(&format!(
        "[pull]\nhosts_dirs = [{:?}]\nregistries_conf = {:?}",
        files.join("certs.d"),
        files.join("registries.conf")
    ))
    .await
}

fn hosts(lab: &Lab, registry: &str, text: &str) {
    let directory = lab.config.pull.hosts_dirs[0].join(registry);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("hosts.toml"), text).unwrap();
}

fn conf(lab: &Lab, text: &str) {
    let file = &lab.config.pull.registries_conf;
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

fn end(lab: &Lab) {
    fs::remove_dir_all(lab.config.pull.registries_conf.parent().unwrap()).unwrap();
}

async fn serving(name: &str) -> Server {
    let image = small(name);
    Server::start(move |seen| image.answer(seen).unwrap_or(Reply::status(404))).await
}

fn of_auth(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.header("authorization")).collect()
}

#[tokio::test]
async fn mirrors_of_a_hosts_file_are_asked_in_order_with_namespace_and_header_but_no_credentials() {
    let lab = lab().await;
    let broken = Server::start(|_| Reply::status(404)).await;
    let mirror = serving("app").await;
    hosts(
        &lab,
        "registry.invalid",
        &format!(
            "[host.\"http://{}\"]\n[host.\"http://{}/cache\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
             [host.\"http://{1}/cache\".header]\nx-node = \"n1\"",
            broken.host, mirror.host
        ),
    );
    let auth = AuthConfig {
        username: "u".into(),
        password: "p".into(),
        ..Default::default()
    };
    lab.images
        .pull("registry.invalid/team/app:v1", Some(auth), None)
        .await
        .unwrap();
    assert_eq!(broken.seen("/v2/team/app/manifests/v1?ns=registry.invalid").len(), 1);
    let seen = mirror.seen("/cache/v2/team/app/");
    assert!(seen.len() >= 3, "{seen:?}");
    assert!(
        seen.iter()
            .all(|seen| seen.header("x-node") == "n1" && seen.path.ends_with("?ns=registry.invalid"))
    );
    assert!(of_auth(&seen).iter().all(|shown| shown.is_empty()), "{seen:?}");
    assert!(lab.images.find("registry.invalid/team/app:v1").is_some());
    end(&lab);
}

#[tokio::test]
async fn a_host_that_may_not_resolve_is_asked_for_digests_only() {
    let lab = lab().await;
    let cache = serving("app").await;
    let origin = serving("app").await;
    hosts(
        &lab,
        "_default",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]",
            origin.host, cache.host
        ),
    );
    lab.images.pull("other.invalid/app:v1", None, None).await.unwrap();
    assert!(cache.seen("/manifests/").is_empty() && !cache.seen("/blobs/").is_empty());
    assert!(origin.seen("/blobs/").is_empty() && origin.seen("/manifests/v1").len() == 1);
    end(&lab);
}

#[tokio::test]
async fn a_header_of_a_host_does_not_follow_a_redirect() {
    let lab = lab().await;
    let image = small("app");
    let store = Arc::new(serving("app").await);
    let (target, served) = (store.clone(), image.clone());
    let front = Server::start(move |seen| {
        if seen.path.contains("/blobs/") {
            return Reply::status(307).header("location", format!("http://{}{}", target.host, seen.path));
        }
        served.answer(seen).unwrap_or(Reply::status(404))
    })
    .await;
    let text = format!(
        "server = \"http://{}\"\n[header]\nauthorization = \"Bearer secret\"",
        front.host
    );
    hosts(&lab, "h.invalid:5000", &text);
    lab.images.pull("h.invalid:5000/app", None, None).await.unwrap();
    assert!(
        of_auth(&front.seen("/v2/"))
            .iter()
            .all(|shown| *shown == "Bearer secret")
    );
    assert!(of_auth(&store.seen("/v2/")).iter().all(|shown| shown.is_empty()));
    end(&lab);
}

#[tokio::test]
async fn registries_conf_rewrites_blocks_and_is_read_again() {
    let lab = lab().await;
    let server = serving("app").await;
    let rule = format!(
        "[[registry]]\nprefix = \"old.invalid/team\"\nlocation = \"{}/moved\"\n",
        server.host
    );
    conf(&lab, &rule);
    lab.images.pull("old.invalid/team/app:v1", None, None).await.unwrap();
    assert_eq!(server.seen("/v2/moved/app/manifests/v1").len(), 1);
    conf(&lab, &format!("{rule}blocked = true\n"));
    let error = lab
        .images
        .pull("old.invalid/team/app:v1", None, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("blocks"), "{error}");
    conf(&lab, "nonsense");
    let error = lab
        .images
        .pull("old.invalid/team/app:v1", None, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("registries.conf"), "{error}");
    end(&lab);
}

#[tokio::test]
async fn a_short_name_stands_for_its_alias_in_pulls_and_lookups() {
    let lab = lab().await;
    let server = serving("app").await;
    conf(
        &lab,
        &format!(
            "unqualified-search-registries = [\"{0}/absent\", \"{0}\"]\nshort-name-mode = \"permissive\"\n\
             [aliases]\n\"tool\" = \"{0}/team/tool\"\n",
            server.host
        ),
    );
    let id = lab.images.pull("tool:v1", None, None).await.unwrap();
    assert_eq!(lab.images.find("tool:v1").unwrap().id, id);
    assert!(lab.images.find(&format!("{}/team/tool:v1", server.host)).is_some());
    assert!(lab.images.find("docker.io/library/tool:v1").is_none());
    end(&lab);
}

#[tokio::test]
async fn an_insecure_registry_is_reached_without_tls() {
    let lab = lab().await;
    let server = serving("app").await;
    conf(
        &lab,
        &format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", server.host),
    );
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
    let gone = Server::start(|_| Reply::status(404)).await;
    conf(
        &lab,
        &format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", gone.host),
    );
    let error = lab
        .images
        .pull(&format!("{}/app", gone.host), None, None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    end(&lab);
}
