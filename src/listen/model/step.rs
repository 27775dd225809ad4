//! The events of the model: what the peers, the provider and the operator do, and time that passes.

/// An event outside the proxy. Those of the second half let time pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// The client sends `authenticate` as its first message.
    Authenticate,
    ClientMessage,
    /// The client sends `refresh_auth`.
    Refresh,
    ClientClose,
    ClientHalfClose,
    ClientGone,
    /// The client takes no byte any more.
    ClientStopsReading,
    ClientReadsAgain,
    UpstreamMessage,
    UpstreamClose,
    UpstreamHalfClose,
    UpstreamGone,
    /// The upstream takes no byte any more.
    UpstreamStopsReading,
    UpstreamReadsAgain,
    /// The upstream answers 101.
    UpstreamOpen,
    /// The upstream answers 403.
    UpstreamRefused,
    /// The provider says that the token is Alice's.
    VerdictGood,
    /// The provider says that the token is Bob's.
    VerdictOther,
    /// The provider says that the token is not active.
    VerdictBad,
    /// Alice is revoked.
    Revocation,
    /// A configuration comes into force that admits everybody.
    ReloadAdmitting,
    /// A configuration comes into force that admits neither of them.
    ReloadExcluding,
    Drain,
    /// The provider does not answer in time.
    VerdictLate,
    /// The upstream does not answer in time.
    UpstreamLate,
    /// The end of the token comes.
    Expiry,
    /// A peer takes nothing for longer than it has after a Close.
    Stall,
}

/// The side on which an event happens. Those of one peer keep their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
    /// The receive windows of both peers, which are independent of what they send.
    Windows,
    Provider,
    Operator,
    Clock,
}

impl Step {
    pub(super) const ALL: [Self; 27] = [
        Self::Authenticate,
        Self::ClientMessage,
        Self::Refresh,
        Self::ClientClose,
        Self::ClientHalfClose,
        Self::ClientGone,
        Self::ClientStopsReading,
        Self::ClientReadsAgain,
        Self::UpstreamMessage,
        Self::UpstreamClose,
        Self::UpstreamHalfClose,
        Self::UpstreamGone,
        Self::UpstreamStopsReading,
        Self::UpstreamReadsAgain,
        Self::UpstreamOpen,
        Self::UpstreamRefused,
        Self::VerdictGood,
        Self::VerdictOther,
        Self::VerdictBad,
        Self::Revocation,
        Self::ReloadAdmitting,
        Self::ReloadExcluding,
        Self::Drain,
        Self::VerdictLate,
        Self::UpstreamLate,
        Self::Expiry,
        Self::Stall,
    ];

    const fn side(self) -> Side {
        match self {
            Self::Authenticate
            | Self::ClientMessage
            | Self::Refresh
            | Self::ClientClose
            | Self::ClientHalfClose
            | Self::ClientGone => Side::Client,
            Self::UpstreamMessage
            | Self::UpstreamClose
            | Self::UpstreamHalfClose
            | Self::UpstreamGone
            | Self::UpstreamOpen
            | Self::UpstreamRefused => Side::Upstream,
            Self::ClientStopsReading
            | Self::ClientReadsAgain
            | Self::UpstreamStopsReading
            | Self::UpstreamReadsAgain => Side::Windows,
            Self::VerdictGood | Self::VerdictOther | Self::VerdictBad => Side::Provider,
            Self::Revocation | Self::ReloadAdmitting | Self::ReloadExcluding | Self::Drain => Side::Operator,
            Self::VerdictLate | Self::UpstreamLate | Self::Expiry | Self::Stall => Side::Clock,
        }
    }

    /// Returns whether the two may happen at one moment. Of two configurations only the later one would be seen.
    pub(super) fn may_coincide(self, other: Self) -> bool {
        let is_reload = |step| matches!(step, Self::ReloadAdmitting | Self::ReloadExcluding);
        self.side() != Side::Clock && other.side() != Side::Clock && !(is_reload(self) && is_reload(other))
    }

    /// Returns whether it changes who may stay connected.
    pub(super) const fn changes_rights(self) -> bool {
        matches!(self, Self::Revocation | Self::ReloadAdmitting | Self::ReloadExcluding)
    }

    /// Returns whether a peer takes bytes again by it.
    pub(super) const fn reads_again(self) -> bool {
        matches!(self, Self::ClientReadsAgain | Self::UpstreamReadsAgain)
    }

    /// Returns whether the proxy may see the two in either order when they happen at one moment.
    pub(super) fn has_no_order(self, other: Self) -> bool {
        self.side() != other.side() || self.side() == Side::Operator
    }
}
