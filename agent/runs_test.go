package agent

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

func prepare(run uint64, total uint32) *dyetracev1.Prepare {
	return &dyetracev1.Prepare{Run: run, Key: bytes.Repeat([]byte{byte(run)}, stain.KeySize), Total: total, ExpiresMs: 1000}
}

func TestRunTable(t *testing.T) {
	now := time.Unix(1000, 0)
	var runs runTable
	for id := uint64(1); id <= maxRuns; id++ {
		if err := runs.add(prepare(id, 10), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := runs.add(prepare(maxRuns+1, 10), now); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("run %d of at most %d: %v", maxRuns+1, maxRuns, err)
	}
	if err := runs.add(prepare(7, 20), now); err != nil {
		t.Errorf("a run that is there, again: %v", err)
	}
	if _, ok := runs.get(7).tokens.Index(runs.get(7).tokens.At(19)); !ok {
		t.Error("the second Prepare of run 7 did not replace the first")
	}
	runs.remove(7)
	runs.remove(7)
	if runs.get(7) != nil {
		t.Error("run 7 is there after its removal")
	}
	// All others have expired: a new one finds room, and they are gone.
	if err := runs.add(prepare(500, 1), now.Add(2*time.Second)); err != nil {
		t.Error(err)
	}
	if runs.get(1) != nil || len(runs.snapshot()) != 1 {
		t.Errorf("%d runs (want 1, the others expired)", len(runs.snapshot()))
	}
	runs.clear()
	if runs.get(500) != nil {
		t.Error("run 500 is there after clear")
	}
}

func TestRunTableRefuses(t *testing.T) {
	var runs runTable
	for _, tt := range []struct {
		p    *dyetracev1.Prepare
		want string
	}{
		{&dyetracev1.Prepare{Run: 1, Key: []byte("short"), Total: 1}, "key has 5 bytes (want 16)"},
		{&dyetracev1.Prepare{Run: 1, Key: make([]byte, stain.KeySize)}, "total is 0"},
	} {
		if err := runs.add(tt.p, time.Now()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("add = %v (want %q)", err, tt.want)
		}
	}
}

func TestCheckInject(t *testing.T) {
	good := func() *dyetracev1.Inject {
		return &dyetracev1.Inject{
			Ports: []*dyetracev1.PortRef{{Bridge: "br-int", Port: "tap1"}},
			Index: []uint32{0, 1}, Port: []uint32{0, 0}, SrcMac: []uint64{1, 1}, DstMac: []uint64{2, 2},
			SrcIp: make([]byte, 32), DstIp: make([]byte, 32), Ttl: []byte{64, 64},
		}
	}
	if err := checkInject(good()); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		spoil func(*dyetracev1.Inject)
		want  string
	}{
		{func(r *dyetracev1.Inject) { r.Port = r.Port[:1] }, "port: 1"},
		{func(r *dyetracev1.Inject) { r.Port[1] = 1 }, "port[1]"},
		{func(r *dyetracev1.Inject) { r.SrcMac = nil }, "src_mac"},
		{func(r *dyetracev1.Inject) { r.DstMac = append(r.DstMac, 1) }, "dst_mac"},
		{func(r *dyetracev1.Inject) { r.SrcIp = r.SrcIp[:31] }, "src_ip"},
		{func(r *dyetracev1.Inject) { r.DstIp = nil }, "dst_ip"},
		{func(r *dyetracev1.Inject) { r.Ttl = nil }, "ttl"},
		{func(r *dyetracev1.Inject) { r.Index = make([]uint32, maxInject+1) }, "index"},
	} {
		r := good()
		tt.spoil(r)
		if err := checkInject(r); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("checkInject = %v (want %s…)", err, tt.want)
		}
	}
}

// TestBatch has each column of a sample filled.
func TestBatch(t *testing.T) {
	t.Parallel()
	var runs runTable
	if err := runs.add(prepare(1, 10), time.Now()); err != nil {
		t.Fatal(err)
	}
	b := newBatch(1, "br-int")
	a, c := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	b.add(runs.get(1), 3, &stain.Copy{Kind: stain.FromTunnel, Scheme: stain.ICMP, InPort: 7, TunSrc: [4]byte{192, 0, 2, 1}, TunID: 9, Src: a, Dst: c, TTL: 63, NoReply: true}, 5)
	b.add(runs.get(1), 4, &stain.Copy{Kind: stain.ToInstance, Scheme: stain.TCP, Src: c, Dst: a, TTL: 64, Reply: true, Flags: 0x12}, -1)
	key := runs.get(1).key
	want := &dyetracev1.Samples{
		Run: 1, Bridges: []string{"br-int"}, Index: []uint32{3, 4}, Bridge: []uint32{0, 0},
		Kind: []dyetracev1.PointKind{dyetracev1.PointKind_POINT_KIND_FROM_TUNNEL, dyetracev1.PointKind_POINT_KIND_TO_INSTANCE},
		AtNs: []uint64{5, 0}, AddrTag: []uint64{stain.AddrTag(key, a, c), stain.AddrTag(key, c, a)}, Ttl: []uint32{63, 64},
		InPort: []uint32{7, 0}, TunSrc: []uint32{0xc0000201, 0}, TunId: []uint32{9, 0}, Reply: []bool{false, true},
		NoReply: []bool{true, false}, Scheme: []dyetracev1.Scheme{dyetracev1.Scheme_SCHEME_ICMP, dyetracev1.Scheme_SCHEME_TCP},
		TcpFlags: []uint32{0, 0x12},
	}
	if !proto.Equal(b.msg, want) {
		t.Errorf("samples %v, want %v", b.msg, want)
	}
}
