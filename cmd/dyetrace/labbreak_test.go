package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/dyetrace/dyetrace/e2e/lab"
)

// TestPrintTruth prints each part of a truth by itself, and none at all.
func TestPrintTruth(t *testing.T) {
	t.Parallel()
	fate := lab.Fate{
		Src: []string{"blue-1", "blue-2"}, Dst: []string{"blue-3"}, Outcome: lab.Faulty,
		LastSeen:     &lab.Point{Host: "hv1", Bridge: "br-tun", Kind: "to-tunnel", Way: lab.Request},
		FirstMissing: lab.Point{Host: "hv3", Bridge: "br-tun", Kind: "from-tunnel", Way: lab.Request},
	}
	entry := fate
	entry.LastSeen, entry.Outcome = nil, lab.Policy
	reach := []lab.Reach{{Src: fate.Src, Dst: fate.Dst}}
	const (
		pairs = "  blue-1, blue-2 → blue-3"
		place = "\n    last seen      hv1 br-tun to-tunnel (request)\n    first missing  hv3 br-tun from-tunnel (request)\n"
	)
	for _, tt := range []struct {
		name  string
		truth lab.Truth
		want  string
	}{
		{"nothing", lab.Truth{}, " every pair is whole\n"},
		{"fates", lab.Truth{Fates: []lab.Fate{fate}}, "\n" + pairs + ": faulty" + place},
		{"never seen", lab.Truth{Fates: []lab.Fate{entry}}, "\n" + pairs + ": policy" + strings.Replace(place, "hv1 br-tun to-tunnel (request)", "nowhere", 1)},
		{"unseen", lab.Truth{Unseen: reach}, "\n" + pairs + "\n    seen everywhere; the answer dies between the last switch and the guest\n"},
		{"a share", lab.Truth{Losses: []lab.Loss{{Fate: fate, PerMille: 25}}}, "\n" + pairs + ": faulty, 2.5 % of its probes, by chance" + place},
		{"a limit", lab.Truth{Losses: []lab.Loss{{Fate: fate}}}, "\n" + pairs + ": faulty, some of its probes, the more the more packets there are" + place},
		{"maybe", lab.Truth{Maybe: []lab.Fate{fate}}, "\n" + pairs + ": maybe; nobody chose what in a packet tells whether it is hit" + place},
		{"large", lab.Truth{Large: []lab.Fate{fate}}, "\n" + pairs + ": probes pass; packets as large as guests may send do not" + place},
	} {
		tt.truth.Traffic = lab.TCP4
		var out strings.Builder
		printTruth(&out, tt.truth)
		if got, want := out.String(), "tcp over IPv4:"+tt.want; got != want {
			t.Errorf("%s:\n%swant\n%s", tt.name, got, want)
		}
	}
	// Whatever else a truth comes to have is no wholeness, but for what is told of the breaks themselves.
	for _, f := range reflect.VisibleFields(reflect.TypeFor[lab.Truth]()) {
		if f.Type.Kind() != reflect.Slice || f.Name == "Causes" || f.Name == "Changes" {
			continue
		}
		truth := lab.Truth{}
		reflect.ValueOf(&truth).Elem().FieldByIndex(f.Index).Set(reflect.MakeSlice(f.Type, 1, 1))
		var out strings.Builder
		if printTruth(&out, truth); strings.Contains(out.String(), "whole") || strings.Count(out.String(), "\n") < 2 {
			t.Errorf("%s is not printed: %s", f.Name, &out)
		}
	}
}
