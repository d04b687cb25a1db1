//! Keycloak: a realm whose tokens Kafka checks, with clients that the test makes, changes and takes away by its admin REST API.
//!
//! tests/stack/setup.sh has built it and filled a database; each Keycloak here has a copy of that.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::certs::{Identity, text};
use super::process::{Process, installed, tail};
use super::stage::free_ports;
use super::until;

const REALM: &str = "gateway";
/// tests/stack/setup.sh gives the database this user.
const ADMIN: [(&str, &str); 4] = [
    ("grant_type", "password"),
    ("client_id", "admin-cli"),
    ("username", "admin"),
    ("password", "tidegate-admin"),
];
/// Ten seconds on two idle cores; more than a minute was seen on busy ones.
const START_LIMIT: Duration = Duration::from_secs(240);

pub struct Keycloak {
    dir: PathBuf,
    port: u16,
    secure_port: u16,
    server: Identity,
    process: Option<Process>,
}

impl Keycloak {
    /// Starts one, with http for the test and Kafka and https as `server` for tidegate, and a realm whose tokens live so long.
    pub fn start(dir: &Path, server: &Identity, token_life: Duration) -> Keycloak {
        let dir = dir.join("keycloak");
        fs::create_dir_all(&dir).expect("folder for Keycloak");
        let database = home().join("data/h2/keycloakdb.mv.db");
        fs::copy(&database, dir.join("keycloakdb.mv.db"))
            .unwrap_or_else(|error| panic!("{}: {error}: run `make test-setup`", database.display()));
        for _ in 0..3 {
            let ports = free_ports(2);
            let (dir, server) = (dir.clone(), server.clone());
            let mut keycloak = Keycloak { dir, port: ports[0], secure_port: ports[1], server, process: None };
            if keycloak.try_up() {
                keycloak.create_realm(token_life);
                return keycloak;
            }
            // Somebody took a port between our look and the bind.
        }
        panic!("Keycloak did not start in three attempts\n{}", tail(&dir.join("keycloak.log"), 40));
    }

    fn try_up(&mut self) -> bool {
        let mut command = installed("sh");
        command.arg(home().join("bin/kc.sh"));
        command.args([
            "start",
            "--optimized",
            "--cache=local",
            "--http-enabled=true",
            "--hostname-strict=false",
        ]);
        command.args(["--http-host=127.0.0.1", &format!("--http-port={}", self.port)]);
        command.arg(format!("--https-port={}", self.secure_port));
        command.arg(format!("--https-certificate-file={}", text(&self.server.certificate)));
        command.arg(format!("--https-certificate-key-file={}", text(&self.server.key)));
        let database = self.dir.join("keycloakdb");
        command.arg(format!(
            "--db-url=jdbc:h2:file:{};NON_KEYWORDS=VALUE;DB_CLOSE_ON_EXIT=FALSE",
            database.display()
        ));
        command.env("JAVA_OPTS", "-Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1");
        let mut process = Process::start("keycloak", &self.dir, &mut command);
        let (log, url) = (process.log.clone(), format!("{}/realms/master", self.base()));
        let up = until("Keycloak to start", START_LIMIT, || {
            if process.ended().is_some() {
                let log = tail(&log, 40);
                assert!(log.contains("in use"), "Keycloak ended at its start\n{log}");
                return Ok(false);
            }
            ask(ureq::get(&url).call()).map(|_| true)
        });
        self.process = Some(process);
        up
    }

    /// Starts it again on its ports and its database.
    pub fn up(&mut self) {
        assert!(self.try_up(), "Keycloak cannot start: a port it was given before is taken");
    }

    /// Stops it in order; nobody answers on its ports then.
    pub fn down(&mut self) {
        self.process.take().expect("Keycloak runs").terminate(Duration::from_secs(30));
    }

    /// Where Kafka gets the keys to check tokens with.
    pub fn keys_uri(&self) -> String {
        format!("{}/realms/{REALM}/protocol/openid-connect/certs", self.base())
    }

    /// Where tidegate gets its tokens, by TLS.
    pub fn token_uri(&self) -> String {
        format!("https://localhost:{}/realms/{REALM}/protocol/openid-connect/token", self.secure_port)
    }

    /// Of its TLS.
    pub fn secure_port(&self) -> u16 {
        self.secure_port
    }

    /// A client that gets tokens for `audience` by its secret.
    pub fn create_client(&self, id: &str, secret: &str, audience: &str) {
        let mapper = mapper(audience);
        let body = format!(
            r#"{{"id":"{id}","clientId":"{id}","secret":"{secret}","enabled":true,"clientAuthenticatorType":"client-secret",
            "serviceAccountsEnabled":true,"standardFlowEnabled":false,"publicClient":false,"protocolMappers":[{mapper}]}}"#
        );
        self.admin("POST", &format!("realms/{REALM}/clients"), &body);
    }

    /// From now on this secret, and no other, is this client's.
    pub fn set_secret(&self, id: &str, secret: &str) {
        let body = format!(r#"{{"id":"{id}","clientId":"{id}","secret":"{secret}"}}"#);
        self.admin("PUT", &format!("realms/{REALM}/clients/{id}"), &body);
    }

    /// From now on the tokens of this client are for this audience too.
    pub fn add_audience(&self, id: &str, audience: &str) {
        let path = format!("realms/{REALM}/clients/{id}/protocol-mappers/models");
        self.admin("POST", &path, &mapper(audience));
    }

    /// A token as tidegate gets it; the test's own question whether a secret is the right one.
    pub fn token(&self, id: &str, secret: &str) -> Result<String, String> {
        let form = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
        token(&format!("{}/realms/{REALM}", self.base()), &form)
    }

    fn create_realm(&self, token_life: Duration) {
        let seconds = token_life.as_secs();
        let body = format!(
            r#"{{"realm":"{REALM}","enabled":true,"accessTokenLifespan":{seconds},"sslRequired":"none"}}"#
        );
        self.admin("POST", "realms", &body);
    }

    fn admin(&self, method: &str, path: &str, body: &str) {
        let token = token(&format!("{}/realms/master", self.base()), &ADMIN).expect("an admin's token");
        let uri = format!("{}/admin/{path}", self.base());
        let request = if method == "PUT" { ureq::put(&uri) } else { ureq::post(&uri) };
        let request = request
            .header("Authorization", format!("Bearer {token}"))
            .header("Content-Type", "application/json");
        ask(request.send(body)).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    }

    fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn mapper(audience: &str) -> String {
    format!(
        r#"{{"name":"audience {audience}","protocol":"openid-connect","protocolMapper":"oidc-audience-mapper",
        "config":{{"included.custom.audience":"{audience}","access.token.claim":"true"}}}}"#
    )
}

fn token(realm: &str, form: &[(&str, &str)]) -> Result<String, String> {
    let uri = format!("{realm}/protocol/openid-connect/token");
    let answer = ask(ureq::post(&uri).send_form(form.iter().copied()))?;
    let token = answer.split(r#""access_token":""#).nth(1).and_then(|rest| rest.split('"').next());
    token.map(str::to_owned).ok_or_else(|| format!("no token in {answer}"))
}

fn ask(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<String, String> {
    let mut answer = answer.map_err(|error| error.to_string())?;
    answer.body_mut().read_to_string().map_err(|error| error.to_string())
}

/// What tests/stack/setup.sh made.
fn home() -> PathBuf {
    let cache = std::env::var_os("TIDEGATE_STACK_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"));
    let home = cache.join("keycloak");
    assert!(home.is_dir(), "Keycloak is not in {}: run `make test-setup`", home.display());
    home
}
