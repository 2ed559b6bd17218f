package e2e

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestCommands breaks a lab in several ways, and types the command that shows each verdict, as it stands, where it says.
func TestCommands(t *testing.T) {
	t.Parallel()
	l := up(t, "--topology", "racks")
	for _, tt := range []struct {
		name, target string
		pair         []string
		flags        []string
		command      string // begins so
		says         string
	}{
		{"drop-flow", "blue-1:blue-3", []string{"blue-1", "blue-3"}, nil, "ovs-appctl ofproto/trace ", `(?s)drop.*Datapath actions: .*`},
		{"tap-off", "green-3", []string{"green-3", "green-4"}, nil, "ovs-vsctl --columns=name,external_ids find Interface ", `^$`},
		{"guest-down", "blue-3", []string{"blue-1", "blue-3"}, nil, "ovs-vsctl --columns=name,admin_state,link_state list Interface ", `link_state +: down`},
		{"guest-firewall", "green-2", []string{"green-1", "green-2"}, []string{"--scheme", "tcp"}, "tcpdump -nei ", `10\.0\.2\.11.* > 10\.0\.2\.12`},
		{"underlay-acl", "hv1:hv4", []string{"blue-1", "blue-4"}, nil, "dyetrace underlay hv1 hv4 ", `none of \d+ packets arrives`},
		{"underlay-protocol", "hv1:hv3:gre", []string{"blue-1", "blue-3"}, nil, "dyetrace underlay hv1 hv3 ", `there: (\d+ of )?128 packets of 32 source ports pass`},
		{"underlay-mtu", "hv1:hv4", []string{"green-1", "green-4"}, []string{"--mtu"}, "dyetrace underlay hv1 hv4 ", `there: path MTU: packets of 1500 bytes`},
		{"underlay-loss", "hv2:hv4:60", []string{"green-2", "green-4"}, []string{"--loss"}, "dyetrace ", `loses \d|\d+ of \d+ packets are lost`},
	} {
		if _, err := exec.LookPath("tcpdump"); err != nil && strings.HasPrefix(tt.command, "tcpdump ") {
			t.Log("no tcpdump here")
			continue
		}
		l.must("lab", "break", tt.name, tt.target)
		l.awaitLinks(tt.name, 1)
		args := append(tt.pair, tt.flags...)
		pairs := l.check(1, args...).Pairs
		for _, p := range pairs {
			if !strings.HasPrefix(p.Command, tt.command) || (p.CommandHost == "") != strings.HasPrefix(tt.command, "dyetrace ") {
				t.Errorf("%s: %v is shown by %q on %q, want %q", tt.name, p, p.Command, p.CommandHost, tt.command)
				continue
			}
			if out := l.types(p, args); !regexp.MustCompile(tt.says).MatchString(strings.TrimSpace(out)) {
				t.Errorf("%s: %v: %s on %s says\n%s\nwant %s", tt.name, p, p.Command, p.CommandHost, out, tt.says)
			}
		}
		l.must("lab", "heal", tt.name)
		l.awaitLinks(tt.name, 0)
		if tt.name == "tap-off" {
			if out := l.types(pairs[0], args); !strings.Contains(out, "fa:16:3e:00:02:0d") {
				t.Errorf("healed: %s says\n%s\nwant the port", pairs[0].Command, out)
			}
		}
	}
}

// types runs the command that shows the verdict on a pair where it is to be typed, and returns what it prints. What watches is
// ended by the first packet, of probes that are sent meanwhile.
func (l *lab) types(p pair, args []string) string {
	l.t.Helper()
	if own, is := strings.CutPrefix(p.Command, "dyetrace "); is {
		words, err := exec.Command("sh", "-c", `printf '%s\n' `+own).Output()
		if err != nil {
			l.t.Fatal(err)
		}
		r := l.dyetrace(strings.Split(strings.TrimSpace(string(words)), "\n")...)
		return r.stdout + r.stderr
	}
	if watch, is := strings.CutPrefix(p.Command, "tcpdump "); is {
		ended, over := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(over)
			for {
				select {
				case <-ended:
					return
				case <-time.After(time.Second): // it may not listen yet
					l.dyetrace(append([]string{"check"}, args...)...)
				}
			}
		}()
		defer func() { close(ended); <-over }()
		return l.node(p.CommandHost, "sh", "-c", "timeout 60 tcpdump -c 1 "+watch)
	}
	return l.node(p.CommandHost, "sh", "-c", p.Command)
}
