package ovs

import (
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
		want   standing
	}{
		{"a request, whatever was before", []string{asked, probed}, stain.ICMP, six, false, 2, stranger},
		{"its answer", []string{probed}, stain.ICMP, six, true, 2, answerer},
		{"its answer, after a request the other way", []string{asked, probed}, stain.ICMP, six, true, 2, answerer},
		{"an answer to nothing, after a request the other way", []string{asked}, stain.ICMP, six, true, 2, stranger},
		{"its answer, in a zone where nobody asked", []string{probed}, stain.ICMP, six, true, 1, stranger},
		{"a SYN after one that is half-open", []string{syn}, stain.TCP, four, false, 2, stranger},
		{"a SYN into a connection", []string{open}, stain.TCP, four, false, 2, sender},
		{"what answers a SYN", []string{syn}, stain.TCP, four, true, 2, answerer},
		{"what answers a SYN, beside another connection", []string{elsewhen}, stain.TCP, four, true, 2, stranger},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := &TraceRequest{Scheme: tt.scheme, Stain: stain.Default(), Reply: tt.reply,
				Src: netip.MustParseAddr(tt.ends[0]), Dst: netip.MustParseAddr(tt.ends[1])}
			if tt.reply {
				r.Src, r.Dst = r.Dst, r.Src
			}
			if got := (connections{true, tt.lines}).of(r, tt.zone); got != tt.want {
				t.Errorf("%d (want %d)", got, tt.want)
			}
		})
	}
	if got := (connections{}).of(&TraceRequest{Reply: true}, 0); got != unlisted {
		t.Errorf("a table that could not be read: %d (want %d)", got, unlisted)
	}
}
