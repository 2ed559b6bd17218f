package ovs

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/dyetrace/dyetrace/stain"
)

// TestStanding reads tables as ovs-vswitchd 3.1 prints them (dpctl/dump-conntrack).
func TestStanding(t *testing.T) {
	t.Parallel()
	const (
		asked    = "icmpv6,orig=(src=fd00:2::14,dst=fd00:1::12,id=11,type=128,code=0),reply=(src=fd00:1::12,dst=fd00:2::14,id=11,type=129,code=0),zone=2"
		probed   = "icmpv6,orig=(src=fd00:1::12,dst=fd00:2::14,id=7,type=128,code=0),reply=(src=fd00:2::14,dst=fd00:1::12,id=7,type=129,code=0),zone=2"
		syn      = "tcp,orig=(src=10.0.1.12,dst=10.0.2.14,sport=11,dport=11),reply=(src=10.0.2.14,dst=10.0.1.12,sport=11,dport=11),zone=2,protoinfo=(state=SYN_SENT)"
		open     = "tcp,orig=(src=10.0.1.12,dst=10.0.2.14,sport=11,dport=11),reply=(src=10.0.2.14,dst=10.0.1.12,sport=11,dport=11),zone=2,protoinfo=(state=ESTABLISHED)"
		elsewhen = "tcp,orig=(src=10.0.1.12,dst=10.0.2.14,sport=4711,dport=22),reply=(src=10.0.2.14,dst=10.0.1.12,sport=22,dport=4711),zone=2,protoinfo=(state=ESTABLISHED)"
	)
	six, four := [2]string{"fd00:1::12", "fd00:2::14"}, [2]string{"10.0.1.12", "10.0.2.14"}
	for _, tt := range []struct {
		name   string
		lines  []string
		scheme stain.Scheme
		ends   [2]string
		reply  bool
		zone   int
		kernel bool
		want   standing
	}{
		{"a request, whatever was before", []string{asked, probed}, stain.ICMP, six, false, 2, false, stranger},
		{"its answer", []string{probed}, stain.ICMP, six, true, 2, false, answerer},
		{"its answer, after a request the other way", []string{asked, probed}, stain.ICMP, six, true, 2, false, answerer},
		{"an answer to nothing, after a request the other way", []string{asked}, stain.ICMP, six, true, 2, false, stranger},
		{"its answer, in a zone where nobody asked", []string{probed}, stain.ICMP, six, true, 1, false, stranger},
		{"a SYN after one that is half-open", []string{syn}, stain.TCP, four, false, 2, false, stranger},
		{"a SYN into a connection", []string{open}, stain.TCP, four, false, 2, false, sender},
		{"what answers a SYN, or does not fit it", []string{syn}, stain.TCP, four, true, 2, false, untold},
		{"what answers in a connection", []string{open}, stain.TCP, four, true, 2, false, answerer},
		{"what answers a SYN, beside another connection", []string{elsewhen}, stain.TCP, four, true, 2, false, stranger},
		// The kernel's table.
		{"what answers a SYN that the kernel has not seen answered", []string{syn}, stain.TCP, four, true, 2, true, untold},
		{"what answers a SYN, and the kernel may have forgotten", nil, stain.TCP, four, true, 2, true, untold},
		{"what answers in a connection of the kernel's", []string{open}, stain.TCP, four, true, 2, true, answerer},
		{"an echo's answer by the kernel", []string{probed}, stain.ICMP, six, true, 2, true, answerer},
		{"an echo's answer to nothing by the kernel", nil, stain.ICMP, six, true, 2, true, stranger},
		{"a SYN by the kernel", []string{syn}, stain.TCP, four, false, 2, true, stranger},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := &TraceRequest{Scheme: tt.scheme, Stain: stain.Default(), Reply: tt.reply,
				Src: netip.MustParseAddr(tt.ends[0]), Dst: netip.MustParseAddr(tt.ends[1])}
			if tt.reply {
				r.Src, r.Dst = r.Dst, r.Src
			}
			if got := (connections{listed: true, kernel: tt.kernel, lines: tt.lines}).of(r, tt.zone); got != tt.want {
				t.Errorf("%d (want %d)", got, tt.want)
			}
		})
	}
	if got := (connections{}).of(&TraceRequest{Reply: true}, 0); got != untold {
		t.Errorf("a table that could not be read: %d (want %d)", got, untold)
	}
}

// TestFewConnections holds what is listed against the bound.
func TestFewConnections(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{"0\n": true, "20000": true, "20001": false, "": false, "many": false} {
		if got := fewConnections(text, nil); got != want {
			t.Errorf("%q: %t (want %t)", text, got, want)
		}
	}
	if fewConnections("1", errors.New("no such file")) {
		t.Error("a table whose size is not known is listed")
	}
}
