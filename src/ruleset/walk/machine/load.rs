//! Instructions that load registers.

use super::super::state::octets;
use super::{FlowState, Machine, Progress};
use crate::model::Family;
use crate::ruleset::{CtDirection, CtKey, Expr, FibResult, Key, MetaKey, PayloadBase, Register};

/// `RTN_UNICAST` and `RTN_LOCAL` of `linux/rtnetlink.h`.
const RTN_UNICAST: u32 = 1;
const RTN_LOCAL: u32 = 2;
/// Bits of `NF_CT_STATE_BIT`.
const STATE_ESTABLISHED: u32 = 2;
const STATE_NEW: u32 = 8;
/// Bits of `enum ip_conntrack_status`.
const STATUS_SRC_NAT: u32 = 1 << 4;
const STATUS_DST_NAT: u32 = 1 << 5;
const IFNAMSIZ: usize = 16;

impl Machine<'_> {
    /// `None` if the instruction cannot be followed.
    pub(super) fn load(&self, expr: &Expr, progress: &mut Progress) -> Option<()> {
        let (dst, bytes): (Register, Vec<u8>) = match expr {
            Expr::Payload { base, offset, len, dst } => {
                (*dst, self.payload(*base, *offset, *len, progress)?)
            }
            Expr::Meta { key: MetaKey::L4Proto, dst } => (*dst, vec![self.packet.protocol]),
            Expr::Meta { key: MetaKey::IifName, dst } => (*dst, self.interface()),
            // Which index an interface has, nobody can tell from a packet; only 0 means something.
            Expr::Meta { key: MetaKey::Iif, dst } => {
                (*dst, u32::from(self.packet.input.is_some()).to_ne_bytes().to_vec())
            }
            Expr::Ct { key, direction, dst } => (*dst, self.conntrack(*key, *direction, progress)?),
            Expr::Fib { result, dst } => (*dst, self.address_type(*result, progress)),
            Expr::Immediate { data, dst } => (*dst, data.as_bytes().to_vec()),
            Expr::Bitwise { src, dst, mask, xor } => {
                (*dst, bitwise(progress.registers.read(*src, mask.as_bytes().len())?, mask, xor)?)
            }
            _ => return None,
        };
        progress.registers.load(dst, &bytes)
    }

    fn payload(
        &self,
        base: PayloadBase,
        offset: u32,
        len: u32,
        progress: &Progress,
    ) -> Option<Vec<u8>> {
        let header = match base {
            PayloadBase::Network => self.network_header(progress),
            PayloadBase::Transport => {
                let ports = [self.packet.source.port(), progress.state.destination.port()];
                ports.iter().flat_map(|port| port.to_be_bytes()).collect()
            }
        };
        let (offset, len) = (offset as usize, len as usize);
        header.get(offset..offset + len).map(<[u8]>::to_vec)
    }

    /// The parts of `struct iphdr` and `struct ipv6hdr` that are known.
    fn network_header(&self, progress: &Progress) -> Vec<u8> {
        let (addresses, protocol) = match self.ruleset.family {
            Family::V4 => (12, 9),
            Family::V6 => (8, 6),
        };
        let mut header = vec![0; addresses];
        header[protocol] = self.packet.protocol;
        header.extend(octets(self.packet.source.ip()));
        header.extend(octets(progress.state.destination.ip()));
        header
    }

    /// Empty for what the host sends: no name starts or equals it.
    fn interface(&self) -> Vec<u8> {
        let mut name = self.packet.input.clone().unwrap_or_default().into_bytes();
        name.resize(IFNAMSIZ, 0);
        name
    }

    fn address_type(&self, result: FibResult, progress: &Progress) -> Vec<u8> {
        let address = match result {
            FibResult::SourceType => self.packet.source.ip(),
            FibResult::DestinationType => progress.state.destination.ip(),
        };
        let local = self.environment.is_local(address);
        let number = if local { RTN_LOCAL } else { RTN_UNICAST };
        number.to_ne_bytes().to_vec()
    }

    fn conntrack(
        &self,
        key: CtKey,
        direction: Option<CtDirection>,
        progress: &Progress,
    ) -> Option<Vec<u8>> {
        let packet = self.packet;
        let bits = |bits: u32| Some(bits.to_ne_bytes().to_vec());
        match key {
            CtKey::State => bits(match packet.state {
                FlowState::New => STATE_NEW,
                FlowState::Established { .. } => STATE_ESTABLISHED,
            }),
            CtKey::Status => {
                let translated = progress.state.translated.map_or(0, |_| STATUS_DST_NAT);
                let masqueraded = if progress.state.masquerade { STATUS_SRC_NAT } else { 0 };
                bits(translated | masqueraded)
            }
            CtKey::Protocol => Some(vec![packet.protocol]),
            // What a reply will look like is not known before the flow leaves the last hook.
            _ if direction == Some(CtDirection::Reply) => None,
            CtKey::SrcIp | CtKey::SrcIp6 => Some(octets(packet.source.ip())),
            CtKey::DstIp | CtKey::DstIp6 => Some(octets(packet.destination.ip())),
            CtKey::ProtoDst => Some(packet.destination.port().to_be_bytes().to_vec()),
        }
    }
}

fn bitwise(held: &[u8], mask: &Key, xor: &Key) -> Option<Vec<u8>> {
    let (mask, xor) = (mask.as_bytes(), xor.as_bytes());
    if mask.len() != xor.len() {
        return None;
    }
    Some(held.iter().zip(mask).zip(xor).map(|((held, mask), xor)| held & mask ^ xor).collect())
}
