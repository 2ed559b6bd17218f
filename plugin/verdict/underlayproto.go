package verdict

import (
	"net/netip"
	"slices"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

const (
	// sourcePorts is how many ports an exchange uses. If one of m equal ways is dead and each port goes
	// by any of them, n ports all miss it with (1-1/m)^n: of 32 ports 1 in 10,000 for four ways, 1.4 %
	// for eight, 13 % for 16. Eight, as such checks often have, would miss one of eight in 34 %.
	sourcePorts = 32
	// exchangeWait is how long answers are waited for after the last packet: a round trip across a
	// continent, and a busy host at its end.
	exchangeWait = 300 * time.Millisecond
)

// Proto returns the question as agents get it; session names the exchange, tos is that of what the
// tunnel carries.
func (n *NeedUnderlay) Proto(session uint64, tos uint8) *dyetracev1.ProbeUnderlay {
	m := &dyetracev1.ProbeUnderlay{
		Session: session, SrcIp: as16(n.Src), DstIp: as16(n.Dst), Port: uint32(n.Port), Tos: uint32(tos),
		Sizes: []uint32{uint32(n.Small)}, SourcePorts: sourcePorts, Repeats: proof,
		WaitMs: uint32(exchangeWait.Milliseconds()), FindMtu: true, Tunnel: n.By.Port,
	}
	if n.Large > n.Small {
		m.Sizes = append(m.Sizes, uint32(n.Large))
	}
	return m
}

// RecallProto asks the other host what it has seen of an exchange from src.
func RecallProto(n *NeedUnderlay, session uint64, src netip.Addr) *dyetracev1.ProbeUnderlay {
	return &dyetracev1.ProbeUnderlay{Session: session, Recall: true, SrcIp: as16(src), DstIp: as16(n.Dst)}
}

// Whole says that an exchange lost nothing: the other host need not be asked what came. Nor need it where nothing could be sent.
func Whole(m *dyetracev1.UnderlayReport, sizes int) bool {
	if m.GetError() != "" || len(m.GetSent()) != len(m.GetAnswered()) || len(m.GetSent()) == 0 {
		return false
	}
	if len(m.GetErrors()) > 0 && !slices.ContainsFunc(m.GetSent(), func(n uint32) bool { return n > 0 }) {
		return true
	}
	for i := range m.GetSent() {
		// Sizes above the smallest are sent again until they are answered.
		if a := m.GetAnswered()[i]; a == 0 || i%sizes == 0 && a < m.GetSent()[i] {
			return false
		}
	}
	return true
}

// UnderlayFromProto reads what both agents say of an exchange: recall is nil where the receiving one
// was not asked, or did not answer, and recalled how long after the report of the other it was asked. Whatever does not fit the question
// is an error: it must not decide.
func UnderlayFromProto(n *NeedUnderlay, q *dyetracev1.ProbeUnderlay, m, recall *dyetracev1.UnderlayReport, recalled time.Duration) *Underlay {
	u := &Underlay{From: n.From, To: n.To, Src: n.Src, Dst: n.Dst, Port: n.Port, Tunnel: n.By.Port, ToS: uint8(m.GetTos()), ToSSeen: uint8(m.GetTosSeen()),
		FromOthers: -1, Passes: int(m.GetPasses()), MayFragment: m.GetMayFragment(), Error: m.GetError()}
	if a, err := netip.ParseAddr(m.GetSrcIp()); err == nil {
		u.Src = a
	}
	for _, e := range m.GetErrors() {
		u.Refusals = append(u.Refusals, UnderlayRefusal{From: e.GetFrom(), Type: uint8(e.GetType()), Code: uint8(e.GetCode()),
			MTU: int(e.GetMtu()), Text: e.GetText(), Size: int(e.GetSize()), Count: int(e.GetCount())})
	}
	if u.Error != "" {
		return u
	}
	ports, sizes := len(m.GetSourcePorts()), len(q.GetSizes())
	if ports != int(q.GetSourcePorts()) || len(m.GetSent()) != ports*sizes || len(m.GetAnswered()) != ports*sizes || len(m.GetRttNs()) != ports*sizes {
		u.Error = "the agent of " + n.From + " tells of another exchange than was asked for"
		return u
	}
	u.Asked, u.Unasked = recall != nil && recall.GetError() == "", recall.GetError()
	switch {
	case !u.Asked:
	case !recall.GetListening():
		u.Error = "the agent of " + n.To + " did not answer: " + recall.GetProblem()
	case recall.GetLimited() > 0:
		u.Error = "the agent of " + n.To + " had more to answer than it may"
	case recall.GetFromOthersNs() > 0:
		u.FromOthers = time.Duration(recall.GetFromOthersNs())
	}
	// The report is made so long after the last packet was sent.
	last := time.Duration(q.GetWaitMs())*time.Millisecond + recalled
	u.Meanwhile = u.Asked && recall.GetFromAskerNs() > 0 && time.Duration(recall.GetFromAskerNs()) < last
	for size, bytes := range q.GetSizes() {
		s := UnderlaySize{Bytes: int(bytes)}
		for port := range ports {
			i := port*sizes + size
			p := UnderlayPort{SourcePort: uint16(m.GetSourcePorts()[port]), Sent: int(m.GetSent()[i]), Answered: int(m.GetAnswered()[i]),
				RTT: time.Duration(m.GetRttNs()[i])}
			p.Arrived = p.Answered
			if u.Asked {
				p.Arrived = max(p.Answered, arrivals(q, recall.GetSeen(), port, size))
			}
			s.Ports = append(s.Ports, p)
		}
		u.Sizes = append(u.Sizes, s)
	}
	return u
}

// arrivals counts the packets of one source port and size that came (ProbeUnderlay.repeats).
func arrivals(q *dyetracev1.ProbeUnderlay, seen []byte, port, size int) (n int) {
	for repeat := range int(q.GetRepeats()) {
		serial := (repeat*int(q.GetSourcePorts())+port)*len(q.GetSizes()) + size
		if serial/8 < len(seen) && seen[serial/8]&(1<<(serial%8)) != 0 {
			n++
		}
	}
	return n
}

// Proto returns the exchange as users get it; nil is nil.
func (u *Underlay) Proto() *dyetracev1.UnderlayCheck {
	if u == nil {
		return nil
	}
	m := &dyetracev1.UnderlayCheck{
		SrcHost: u.From, DstHost: u.To, SrcIp: text(u.Src), DstIp: text(u.Dst), Port: uint32(u.Port),
		Tos: uint32(u.ToS), TosSeen: uint32(u.ToSSeen), Passes: uint32(u.Passes), Error: u.Error, Tunnel: u.Tunnel,
	}
	for _, r := range u.Refusals {
		m.Errors = append(m.Errors, &dyetracev1.UnderlayError{From: r.From, Type: uint32(r.Type), Code: uint32(r.Code),
			Mtu: uint32(r.MTU), Text: r.Text, Size: uint32(r.Size), Count: uint32(r.Count)})
	}
	for i := range u.Sizes {
		s := &dyetracev1.UnderlaySize{Bytes: uint32(u.Sizes[i].Bytes)}
		for _, p := range u.Sizes[i].Ports {
			s.SourcePort = append(s.SourcePort, uint32(p.SourcePort))
			s.Sent = append(s.Sent, uint32(p.Sent))
			s.Answered = append(s.Answered, uint32(p.Answered))
			s.RttNs = append(s.RttNs, uint64(p.RTT))
			if u.Asked {
				s.Arrived = append(s.Arrived, uint32(p.Arrived))
			}
		}
		m.Sizes = append(m.Sizes, s)
	}
	m.Forward, m.Reply = u.Says()
	return m
}
