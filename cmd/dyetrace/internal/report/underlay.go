package report

import (
	"fmt"
	"io"
	"slices"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// Underlay is an exchange of UDP packets between the tunnel addresses of two hosts.
type Underlay struct {
	SrcHost string `json:"src_host"`
	DstHost string `json:"dst_host"`
	SrcIP   string `json:"src_ip"`
	DstIP   string `json:"dst_ip"`
	Port    uint32 `json:"port"`
	// Tunnel is the port of the first host whose packets they were like; empty where none was named.
	Tunnel string `json:"tunnel"`
	// ToS as it was sent, ToSSeen as it came; -1 where no answer told.
	ToS     uint32 `json:"tos"`
	ToSSeen int    `json:"tos_seen"`
	// Sizes ascend.
	Sizes []UnderlaySize `json:"sizes"`
	// Passes is the largest packet that passes there and back, where a large one did not; else 0.
	Passes uint32          `json:"passes"`
	Errors []UnderlayError `json:"errors"`
	// Forward and Reply say it in a line each.
	Forward string `json:"forward"`
	Reply   string `json:"reply"`
	// Error is why nothing was found out.
	Error string `json:"error"`
}

// UnderlaySize is what became of packets of one size.
type UnderlaySize struct {
	Bytes uint32         `json:"bytes"`
	Ports []UnderlayPort `json:"ports"`
}

// UnderlayPort is what became of those from one source port. Arrived is -1 where the other host could
// not be asked, RTT is of the fastest answer and 0 where there was none.
type UnderlayPort struct {
	SourcePort uint32 `json:"source_port"`
	Sent       uint32 `json:"sent"`
	Arrived    int    `json:"arrived"`
	Answered   uint32 `json:"answered"`
	RTT        uint64 `json:"rtt_ns"`
}

// UnderlayError is what came back instead of answers, from whom: empty is the sending host.
type UnderlayError struct {
	From  string `json:"from"`
	Text  string `json:"text"`
	MTU   uint32 `json:"mtu"`
	Count uint32 `json:"count"`
}

// NewUnderlay returns the view of an exchange; nil is nil.
func NewUnderlay(m *dyetracev1.UnderlayCheck) *Underlay {
	if m == nil {
		return nil
	}
	u := &Underlay{
		SrcHost: m.GetSrcHost(), DstHost: m.GetDstHost(), SrcIP: m.GetSrcIp(), DstIP: m.GetDstIp(), Port: m.GetPort(), Tunnel: m.GetTunnel(),
		ToS: m.GetTos(), ToSSeen: -1, Sizes: []UnderlaySize{}, Passes: m.GetPasses(), Errors: []UnderlayError{},
		Forward: m.GetForward(), Reply: m.GetReply(), Error: m.GetError(),
	}
	for _, e := range m.GetErrors() {
		u.Errors = append(u.Errors, UnderlayError{e.GetFrom(), e.GetText(), e.GetMtu(), e.GetCount()})
	}
	for _, s := range m.GetSizes() {
		size := UnderlaySize{Bytes: s.GetBytes(), Ports: []UnderlayPort{}}
		for i, port := range s.GetSourcePort() {
			p := UnderlayPort{SourcePort: port, Sent: at(s.GetSent(), i), Arrived: -1, Answered: at(s.GetAnswered(), i), RTT: at(s.GetRttNs(), i)}
			if i < len(s.GetArrived()) {
				p.Arrived = int(s.GetArrived()[i])
			}
			if p.Answered > 0 {
				u.ToSSeen = int(m.GetTosSeen())
			}
			size.Ports = append(size.Ports, p)
		}
		u.Sizes = append(u.Sizes, size)
	}
	return u
}

func at[T any](column []T, i int) (v T) {
	if i < len(column) {
		v = column[i]
	}
	return v
}

// Lost says whether anything was: of the smallest size any packet, of others all from a source port,
// since those are sent until they are answered.
func (u *Underlay) Lost() bool {
	for i, s := range u.Sizes {
		for _, p := range s.Ports {
			if p.Answered == 0 || i == 0 && p.Answered < p.Sent {
				return true
			}
		}
	}
	return false
}

// Text writes an exchange for people: what can be said, and the source ports that lost something; all of
// them if verbose.
func (u *Underlay) Text(w io.Writer, verbose bool) error {
	out := &lines{w: w}
	tos := fmt.Sprintf("ToS %d", u.ToS)
	if u.Tunnel != "" {
		tos = fmt.Sprintf("as %s's with ToS %d", u.Tunnel, u.ToS)
	}
	if u.ToSSeen >= 0 && uint32(u.ToSSeen) != u.ToS {
		tos += fmt.Sprintf(", which comes as %d", u.ToSSeen)
	}
	out.printf("%s → %s: UDP from %s to %s, port %d, %s\n", u.SrcHost, u.DstHost, u.SrcIP, u.DstIP, u.Port, tos)
	if u.Error != "" {
		out.printf("  nothing is known: %s\n", u.Error)
		return out.err
	}
	out.printf("  there: %s\n", u.Forward)
	if u.Reply != "" {
		out.printf("  back:  %s\n", u.Reply)
	}
	if u.Passes > 0 {
		out.printf("  MTU:   packets of up to %d bytes pass there and back\n", u.Passes)
	}
	for _, e := range u.Errors {
		from := e.From
		if from == "" {
			from = u.SrcHost
		}
		mtu := ""
		if e.MTU > 0 {
			mtu = fmt.Sprintf(", at most %d bytes", e.MTU)
		}
		out.printf("  %s says: %s%s (%d times)\n", from, e.Text, mtu, e.Count)
	}
	for i, s := range u.Sizes {
		u.ports(out, i, s, verbose)
	}
	return out.err
}

func (u *Underlay) ports(out *lines, i int, s UnderlaySize, verbose bool) {
	var fine []UnderlayPort
	out.printf("  packets of %d bytes\n", s.Bytes)
	for _, p := range s.Ports {
		if whole := p.Answered > 0 && (i > 0 || p.Answered == p.Sent); whole && !verbose {
			fine = append(fine, p)
			continue
		}
		arrived := "?"
		if p.Arrived >= 0 {
			arrived = fmt.Sprint(p.Arrived)
		}
		rtt := ""
		if p.Answered > 0 {
			rtt = ", " + duration(int64(p.RTT))
		}
		out.printf("    from port %5d: %d sent, %s came there, %d answered%s\n", p.SourcePort, p.Sent, arrived, p.Answered, rtt)
	}
	if len(fine) > 0 {
		slices.SortFunc(fine, func(a, b UnderlayPort) int { return int(a.RTT) - int(b.RTT) })
		out.printf("    %d source ports lost nothing; round trip %s to %s\n", len(fine), duration(int64(fine[0].RTT)), duration(int64(fine[len(fine)-1].RTT)))
	}
}

// lines keeps the first error of writing.
type lines struct {
	w   io.Writer
	err error
}

func (l *lines) printf(format string, args ...any) {
	if l.err == nil {
		_, l.err = fmt.Fprintf(l.w, format, args...)
	}
}
