//! From the bytes of a request to the bytes of its answer: pure.
//!
//! Source: RFC 9110 and 9112. Only GET and HEAD, only HTTP/1.x, one request a connection: its body, if it says that it has one, is
//! read past and means nothing.

use super::super::pages::Page;

/// Most bytes of a request, all header lines together. A scraper's is some hundred.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// Most header lines.
const HEADERS_MAX: usize = 64;

/// What comes of the bytes that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// More is needed.
    Incomplete,
    /// This is to be written, and then the connection closed.
    Answer(Vec<u8>),
}

/// Answers a request as soon as it is whole, or cannot become right any more.
pub fn answer(bytes: &[u8], page: impl FnOnce(&str) -> Option<Page>) -> Outcome {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if bytes.len() < REQUEST_BYTES_MAX => return Outcome::Incomplete,
        Ok(httparse::Status::Partial) if !bytes.contains(&b'\n') => {
            return refusal(414, "URI Too Long", "", true);
        }
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refusal(431, "Request Header Fields Too Large", "", true);
        }
        Err(httparse::Error::Version) => return refusal(505, "HTTP Version Not Supported", "", true),
        Err(_) => return refusal(400, "Bad Request", "", true),
    }
    // RFC 9110 section 9.3.2: to HEAD no answer has a body.
    let with_body = request.method != Some("HEAD");
    let hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host")).count();
    // RFC 9112 section 3.2: exactly one with HTTP/1.1.
    if hosts > 1 || (hosts == 0 && request.version == Some(1)) {
        return refusal(400, "Bad Request", "", with_body);
    }
    if !matches!(request.method, Some("GET" | "HEAD")) {
        return refusal(405, "Method Not Allowed", "Allow: GET, HEAD\r\n", with_body);
    }
    match page(path(request.path.unwrap_or_default())) {
        Some(page) => {
            let reason = if page.status == 200 { "OK" } else { "Service Unavailable" };
            Outcome::Answer(response(page.status, reason, page.content_type, "", &page.body, with_body))
        }
        None => {
            let body = "404: there are /metrics, /healthz and /readyz\n";
            Outcome::Answer(response(404, "Not Found", "text/plain; charset=utf-8", "", body, with_body))
        }
    }
}

/// The path of a request target: without query, and without `http://HOST` (RFC 9112 section 3.2.2: it must be understood).
fn path(target: &str) -> &str {
    let scheme = target.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
    let target = match scheme.and_then(|scheme| target.get(scheme.len()..)) {
        Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    };
    target.split(['?', '#']).next().unwrap_or_default()
}

fn refusal(status: u16, reason: &str, header: &str, with_body: bool) -> Outcome {
    let body = format!("{status}: {reason}\n");
    Outcome::Answer(response(status, reason, "text/plain; charset=utf-8", header, &body, with_body))
}

fn response(
    status: u16,
    reason: &str,
    content_type: &str,
    header: &str,
    body: &str,
    with_body: bool,
) -> Vec<u8> {
    let mut text = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{header}\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        text.push_str(body);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(path: &str) -> Option<Page> {
        let status = match path {
            "/up" => 200,
            "/down" => 503,
            _ => return None,
        };
        Some(Page { status, content_type: "text/x", body: "five\n".to_owned() })
    }

    fn told(request: &str) -> String {
        match answer(request.as_bytes(), pages) {
            Outcome::Answer(bytes) => String::from_utf8(bytes).unwrap(),
            Outcome::Incomplete => "incomplete".to_owned(),
        }
    }

    fn status(request: &str) -> u16 {
        told(request).split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    #[test]
    fn a_page_is_given_whole_and_to_head_without_its_body() {
        let get = told("GET /up HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(get.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nContent-Length: 5\r\n"), "{get}");
        assert!(get.ends_with("Connection: close\r\n\r\nfive\n"), "{get}");
        let head = told("HEAD /up HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(head, get.strip_suffix("five\n").unwrap());
        assert!(told("HEAD /up HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"), "a refusal has no body either");
        assert_eq!(status("GET /down?x=1 HTTP/1.0\r\n\r\n"), 503);
        assert_eq!(status("GET http://a:1/up HTTP/1.1\r\nHost: a\r\n\r\n"), 200);
        assert_eq!(status("GET /up HTTP/1.1\nhost: a\n\n"), 200, "bare line feeds are taken");
    }

    #[test]
    fn what_is_not_served_is_refused_with_the_right_status() {
        for (request, expected) in [
            ("GET /other HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 404),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            ("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 405),
            ("get /up HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            ("GET /up HTTP/1.1\r\n\r\n", 400),
            ("GET /up HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET /up HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            ("GET /up\r\n\r\n", 400),
            ("GET /up HTTP/1.1\r\nHo st: a\r\n\r\n", 400),
            ("\x16\x03\x01\x02\x00\x01\x00", 400),
            ("\0\0\0\0", 400),
        ] {
            assert_eq!(status(request), expected, "{request:?}");
        }
        assert!(told("PUT / HTTP/1.1\r\nHost: a\r\n\r\n").contains("\r\nAllow: GET, HEAD\r\n"));
    }

    #[test]
    fn what_is_too_large_is_refused_as_soon_as_that_is_known() {
        assert_eq!(told("GET /up HTTP/1.1\r\nHost"), "incomplete");
        assert_eq!(told(""), "incomplete");
        let long = "a".repeat(REQUEST_BYTES_MAX);
        assert_eq!(status(&format!("GET /{long}")), 414);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}")), 431);
        let many = "X: y\r\n".repeat(HEADERS_MAX + 1);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{many}\r\n")), 431);
    }

    proptest! {
        /// Nobody can make it panic, or wait for more than the limit.
        #[test]
        fn any_bytes_have_an_outcome(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), prefix in "(GET|HEAD|POST) /[a-z?#:/ ]{0,20}",
        ) {
            let mut request = prefix.into_bytes();
            request.extend(bytes);
            for end in 0..request.len() {
                answer(&request[..end], pages);
            }
            request.resize(REQUEST_BYTES_MAX, b'a');
            prop_assert_ne!(answer(&request, pages), Outcome::Incomplete);
        }
    }
}
