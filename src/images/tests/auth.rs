//! Who is let in, and who sees what.

use std::sync::{Arc, Mutex};

use wharf_proto::cri::AuthConfig;

use super::super::{
    ErrorKind,
    testing::{Lab, Reply, Seen, Server, small},
};

fn password() -> AuthConfig {
    AuthConfig {
        username: "u".into(),
        password: "hunter2".into(),
        ..Default::default()
    }
}

/// A registry that wants the token that its own `/token` gives out; `token` makes it from the request.
async fn token_registry(token: impl Fn(&Seen) -> Option<String> + Send + Sync + 'static) -> Server {
    let app = small("app");
    let valid: Arc<Mutex<String>> = Arc::default();
    Server::start(move |seen| {
        if seen.path.starts_with("/token") {
            return match token(seen) {
                Some(token) => {
                    valid.lock().unwrap().clone_from(&token);
                    Reply::ok(format!(r#"{{"access_token":"{token}","expires_in":60}}"#))
                }
                None => Reply::status(401),
            };
        }
        if seen.header("authorization") == format!("Bearer {}", valid.lock().unwrap()) {
            return app.answer(seen).unwrap();
        }
        let realm = format!("http://{}/token?a=b", seen.header("host"));
        Reply::status(401).header(
            "www-authenticate",
            format!(r#"Bearer realm="{realm}",service="reg",scope="repository:app:pull""#),
        )
    })
    .await
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once() {
    let server = token_registry(|_| Some("t".into())).await;
    let lab = Lab::new("").await;
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
    let asked = server.seen("/token");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].path, "/token?a=b&service=reg&scope=repository%3Aapp%3Apull");
    assert_eq!(asked[0].header("authorization"), "");
}

#[tokio::test]
async fn a_password_is_exchanged_for_a_token_and_never_shown_to_the_registry() {
    let server =
        token_registry(|seen| (seen.header("authorization") == "Basic dTpodW50ZXIy").then(|| "t".into())).await;
    let lab = Lab::new("").await;
    let reference = format!("{}/app", server.host);
    lab.images.pull(&reference, Some(password()), None).await.unwrap();
    assert!(server.seen("/token")[0].path.contains("account=u"));
    assert!(
        server
            .seen("/v2/")
            .iter()
            .all(|seen| !seen.header("authorization").contains("Basic"))
    );
    // Without it the same image is out of reach, though it is here.
    let error = lab.images.pull(&reference, None, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let server = token_registry(|seen| {
        (seen.method == "POST"
            && seen.body.contains("refresh_token=id%2Ftoken")
            && seen.body.contains("grant_type=refresh_token"))
        .then(|| "t".into())
    })
    .await;
    let lab = Lab::new("").await;
    let auth = AuthConfig {
        identity_token: "id/token".into(),
        ..Default::default()
    };
    lab.images
        .pull(&format!("{}/app", server.host), Some(auth), None)
        .await
        .unwrap();
    assert_eq!(server.seen("/token")[0].path, "/token?a=b");
}

#[tokio::test]
async fn a_token_that_expires_during_a_pull_is_renewed() {
    let count = Mutex::new(0);
    let server = token_registry(move |_| {
        let mut count = count.lock().unwrap();
        *count += 1;
        Some(format!("t{count}"))
    })
    .await;
    let lab = Lab::new("").await;
    let reference = format!("{}/app", server.host);
    let session = super::super::registry::Client::new(&lab.config)
        .session(&super::super::Reference::parse(&reference).unwrap(), None)
        .await
        .unwrap();
    session.manifest("latest").await.unwrap();
    // Another client's token invalidates ours.
    lab.images.pull(&reference, None, None).await.unwrap();
    session.manifest("latest").await.unwrap();
    assert_eq!(server.seen("/token").len(), 3);
}

#[tokio::test]
async fn a_registry_token_is_shown_as_it_is() {
    let app = small("app");
    let server = Server::start(move |seen| match seen.header("authorization") {
        "Bearer r" => app.answer(seen).unwrap(),
        _ => Reply::status(401).header("www-authenticate", "Bearer realm=\"http://127.0.0.1:1/\""),
    })
    .await;
    let lab = Lab::new("").await;
    let token = |token: &str| AuthConfig {
        registry_token: token.into(),
        ..Default::default()
    };
    let reference = format!("{}/app", server.host);
    let error = lab
        .images
        .pull(&reference, Some(token("wrong-one")), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error} {error:?}").contains("wrong-one"));
    lab.images.pull(&reference, Some(token("r")), None).await.unwrap();
}

#[tokio::test]
async fn basic_authentication_works_and_wrong_passwords_do_not() {
    let app = small("app");
    let server = Server::start(move |seen| match seen.header("authorization") {
        "Basic dTpodW50ZXIy" => app.answer(seen).unwrap(),
        _ => Reply::status(401).header("www-authenticate", "Basic realm=\"x\""),
    })
    .await;
    let lab = Lab::new("").await;
    let reference = format!("{}/app", server.host);
    let wrong = AuthConfig {
        password: "swordfish".into(),
        ..password()
    };
    for auth in [None, Some(wrong)] {
        let error = lab.images.pull(&reference, auth, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
        assert!(!format!("{error} {error:?}").contains("swordfish"));
    }
    lab.images.pull(&reference, Some(password()), None).await.unwrap();
}

#[tokio::test]
async fn redirects_are_followed_without_credentials() {
    let app = small("app");
    let fixture = app.clone();
    let store = Server::start(move |seen| fixture.answer(seen).unwrap()).await;
    let host = store.host.clone();
    let server = Server::start(move |seen| {
        if seen.header("authorization") != "Basic dTpodW50ZXIy" {
            return Reply::status(401).header("www-authenticate", "Basic realm=\"x\"");
        }
        if seen.path.contains("/blobs/") {
            return Reply::status(307).header("location", format!("http://{host}{}?signature=s3cr3t", seen.path));
        }
        app.answer(seen).unwrap()
    })
    .await;
    let lab = Lab::new("").await;
    lab.images
        .pull(&format!("{}/app", server.host), Some(password()), None)
        .await
        .unwrap();
    let fetched = store.seen("/blobs/");
    assert_eq!(fetched.len(), 2);
    assert!(
        fetched
            .iter()
            .all(|seen| seen.header("authorization").is_empty() && seen.path.contains("?signature="))
    );
}

#[tokio::test]
async fn what_a_redirect_carries_is_in_no_error() {
    for target in [
        "http://127.0.0.1:1/x?signature=s3cr3t",
        "http://a b/?s3cr3t",
        "ftp://s3cr3t/",
    ] {
        let server = Server::start(move |_| Reply::status(302).header("location", target)).await;
        let lab = Lab::new("").await;
        let error = lab
            .images
            .pull(&format!("{}/app", server.host), None, None)
            .await
            .unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error}");
    }
    let server = Server::start(|seen| Reply::status(302).header("location", seen.path.clone())).await;
    let lab = Lab::new("").await;
    let error = lab
        .images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("redirects too often"), "{error}");
}
