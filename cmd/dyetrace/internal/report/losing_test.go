package report

import (
	"strings"
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// What loses and is no pair's verdict is told; what is, is not told twice.
func TestLosing(t *testing.T) {
	segment := &dyetracev1.Segment{
		From: &dyetracev1.Point{Host: "hv2", Bridge: "br-tun", Kind: dyetracev1.PointKind_POINT_KIND_TO_TUNNEL},
		To:   &dyetracev1.Point{Host: "hv4", Bridge: "br-tun", Kind: dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL},
	}
	loss := func(change func(*dyetracev1.SegmentLoss)) *dyetracev1.SegmentLoss {
		l := &dyetracev1.SegmentLoss{Segment: segment, Probes: 1000, Lost: 40, Low: 0.029, High: 0.054, Underlay: true}
		change(l)
		return l
	}
	print := func(all ...*dyetracev1.SegmentLoss) string {
		var b strings.Builder
		if err := NewRun(&dyetracev1.Run{Losses: all}).WriteLosing(&b, false); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	host := loss(func(l *dyetracev1.SegmentLoss) { l.Segment, l.Host = nil, "hv4" })
	if told := print(loss(func(*dyetracev1.SegmentLoss) {}), host); told != "Loss besides: none any more\n" {
		t.Errorf("%q, of a loss that pairs tell of", told)
	}
	told := print(loss(func(*dyetracev1.SegmentLoss) {}),
		loss(func(l *dyetracev1.SegmentLoss) { l.SourcePorts = []uint32{40001, 40005} }),
		loss(func(l *dyetracev1.SegmentLoss) { l.Segment, l.Host, l.Underlay = nil, "hv2", false }), host)
	const want = `
Loss besides:
  the underlay, hv2/br-tun to-tunnel → hv4/br-tun from-tunnel: loses 4 % (2.9-5.4 %, 95 %) of 1000 UDP packets from 2 of the source ports, others lose none: one of several equal-cost paths
  all of hv2: loses 4 % (2.9-5.4 %, 95 %) of 1000 probes
`
	if told != want {
		t.Errorf("%s\nwant\n%s", told, want)
	}
	if told := print(); told != "Loss besides: none any more\n" {
		t.Errorf("%q", told)
	}
}
