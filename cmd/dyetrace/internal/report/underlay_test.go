package report

import (
	"strings"
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

func TestUnderlay(t *testing.T) {
	t.Parallel()
	m := &dyetracev1.UnderlayCheck{
		SrcHost: "hv1", DstHost: "hv3", SrcIp: "10.0.0.1", DstIp: "10.0.0.3", Port: 7443, Tos: 184, TosSeen: 0, Passes: 1400,
		Forward: "it passes", Reply: "8 of 8 answers come back",
		Errors: []*dyetracev1.UnderlayError{{From: "10.0.0.254", Text: "fragmentation needed", Mtu: 1400, Count: 3}, {Text: "message too long", Count: 1}},
		Sizes: []*dyetracev1.UnderlaySize{
			{Bytes: 128, SourcePort: []uint32{40001, 40002, 40003}, Sent: []uint32{4, 4, 4}, Arrived: []uint32{4, 4, 3}, Answered: []uint32{4, 4, 3}, RttNs: []uint64{300_000, 200_000, 500_000}},
			{Bytes: 1492, SourcePort: []uint32{40001, 40002, 40003}, Sent: []uint32{4, 1, 2}, Answered: []uint32{0, 1, 1}, RttNs: []uint64{0, 900_000, 1_000_000}},
		},
	}
	u := NewUnderlay(m)
	const want = `hv1 → hv3: UDP from 10.0.0.1 to 10.0.0.3, port 7443, ToS 184, which comes as 0
  there: it passes
  back:  8 of 8 answers come back
  MTU:   packets of up to 1400 bytes pass there and back
  10.0.0.254 says: fragmentation needed, at most 1400 bytes (3 times)
  hv1 says: message too long (1 times)
  packets of 128 bytes
    from port 40003: 4 sent, 3 came there, 3 answered, 500 µs
    2 source ports lost nothing; round trip 200 µs to 300 µs
  packets of 1492 bytes
    from port 40001: 4 sent, ? came there, 0 answered
    2 source ports lost nothing; round trip 900 µs to 1.00 ms
`
	var b strings.Builder
	if err := u.Text(&b, false); err != nil || b.String() != want {
		t.Errorf("Text = %v\n%swant\n%s", err, b.String(), want)
	}
	b.Reset()
	if err := u.Text(&b, true); err != nil || strings.Count(b.String(), "from port") != 6 {
		t.Errorf("verbose Text = %v\n%s", err, b.String())
	}
	if !u.Lost() || NewUnderlay(nil) != nil {
		t.Error("Lost: false, or nil is something")
	}
	m.Sizes[0].Answered[2], m.Sizes[1].Answered[0] = 4, 1
	if NewUnderlay(m).Lost() {
		t.Error("Lost, though large ones that were not answered at once were in the end")
	}
	b.Reset()
	m = &dyetracev1.UnderlayCheck{SrcHost: "hv1", DstHost: "hv3", Error: "nobody there"}
	if err := NewUnderlay(m).Text(&b, false); err != nil || !strings.HasSuffix(b.String(), "nothing is known: nobody there\n") {
		t.Errorf("Text = %v\n%s", err, b.String())
	}
}
