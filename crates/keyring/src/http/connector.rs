//! TLS under HTTP: the library's own connector, but with a configuration of ours, and with a look at the
//! certificate that the server has shown.

use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::http::uri::Authority;
use ureq::unversioned::transport::time::{Duration as AgentDuration, Instant as AgentInstant};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter,
};

use crate::tls::{Loaded, Seen};

/// Makes a TLS connection of one where the address wants that.
pub(super) struct TlsConnector {
    loaded: Loaded,
    /// Made when it is needed first: the system's authorities are many.
    config: OnceLock<Arc<ClientConfig>>,
    seen: Seen,
    /// Whose certificates are noted; `None` is any server's.
    noted: Option<Authority>,
}

impl TlsConnector {
    pub(super) fn new(loaded: Loaded, seen: Seen, noted: Option<Authority>) -> Self {
        Self { loaded, config: OnceLock::new(), seen, noted }
    }

    fn config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        match self.config.get() {
            Some(config) => Ok(Arc::clone(config)),
            None => {
                let made = Arc::new(self.loaded.config()?);
                Ok(Arc::clone(self.config.get_or_init(|| made)))
            }
        }
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport<In>>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default();
        // An IPv6 address has brackets in an address alone (RFC 3986, section 3.2.2).
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| ureq::Error::Tls("the host is not a name that a certificate may have"))?;
        let mut connection = ClientConnection::new(self.config()?, name)?;
        let mut socket = TransportAdapter::new(transport, Arc::clone(&details.current_time));
        socket.set_timeout(left(details));
        let is_noted =
            self.noted.as_ref().is_none_or(|noted| details.uri.authority() == Some(noted));
        let shaken = connection.complete_io(&mut socket);
        if is_noted {
            match &shaken {
                Ok(_) => self.seen.note_handshake(&connection),
                Err(error) => self.seen.note_failure(error),
            }
        }
        shaken?;
        let buffers = LazyBuffers::new(
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        let stream = StreamOwned { conn: connection, sock: socket };
        Ok(Some(Either::B(TlsTransport { buffers, stream })))
    }
}

/// The time-out of the connection, less the time that it took so far.
fn left(details: &ConnectionDetails) -> NextTimeout {
    let after = match (details.timeout.after, details.now) {
        (AgentDuration::Exact(after), AgentInstant::Exact(began)) => {
            AgentDuration::Exact(after.saturating_sub(began.elapsed()))
        }
        (after, _) => after,
    };
    NextTimeout { after, ..details.timeout }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

/// A TLS connection.
pub(super) struct TlsTransport<In: Transport> {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter<In>>,
}

impl<In: Transport> Transport for TlsTransport<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl<In: Transport> fmt::Debug for TlsTransport<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}
