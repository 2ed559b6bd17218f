package verdict

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/plugin/sequential"
	"github.com/dyetrace/dyetrace/stain"
)

// replay has the result bear the commands of the explanation of what was seen last at a point, if there is one.
func (j *judgement) replay(r *Result, from int) {
	x := j.explained(from)
	if x == nil {
		return
	}
	r.Command, r.LogicalCommand = x.Command, x.LogicalCommand
	if r.Command != "" {
		r.CommandHost = j.Path.Points[from].Host
	}
}

// show has a verdict that something is wrong bear a command that shows it.
func (j *judgement) show(r *Result) {
	switch {
	case r.Underlay != nil && r.Underlay.Error == "":
		r.try(r.Underlay)
	case r.Command != "":
	case r.Verdict == Faulty || r.Verdict == Silent || r.Verdict == PolicyDrop:
		r.Command, r.CommandHost = j.look(r)
	}
}

// try has the result bear the command that makes an exchange again, if that told anything; what shows the flows' part is beside it.
func (r *Result) try(u *Underlay) {
	if u == nil || u.Error != "" {
		return
	}
	if r.Command != "" {
		r.Trace, r.TraceHost = r.Command, r.CommandHost
	}
	r.Command, r.CommandHost = u.command(), ""
}

// command makes the exchange again.
func (u *Underlay) command() string {
	args := []string{underlayCommand(u.From, u.To, u.Src, u.Dst)}
	if u.Tunnel != "" {
		args = append(args, "--tunnel", quote(u.Tunnel))
	}
	if last := len(u.Sizes) - 1; last > 0 {
		args = append(args, "--size", strconv.Itoa(u.Sizes[last].Bytes))
	}
	return strings.Join(args, " ")
}

// underlayCommand tries the network between two hosts, at their tunnel addresses as far as these are known.
func underlayCommand(from, to string, src, dst netip.Addr) string {
	args := []string{"dyetrace underlay", quote(from), quote(to)}
	if src.IsValid() {
		args = append(args, "--src-ip", src.String())
	}
	if dst.IsValid() {
		args = append(args, "--dst-ip", dst.String())
	}
	return strings.Join(args, " ")
}

// lossCommand measures what a pair loses, as it was measured.
func lossCommand(r *dyetracev1.PairResult, test sequential.Plan) string {
	src, _ := netip.ParseAddr(r.GetSrcIp())
	return checkCommand(ref(r.GetSrc()), ref(r.GetDst()), stain.Scheme(r.GetScheme()), src, r.GetNoTouch()) + lossFlags(test)
}

// lossFlags have the same loss be measured: what was asked for is not rounded as a measured share is.
func lossFlags(test sequential.Plan) string {
	return " --loss --max-loss " + strconv.FormatFloat(100*test.P1, 'g', 6, 64)
}

// checkCommand probes a pair again, in the same way.
func checkCommand(src, dst string, scheme stain.Scheme, ip netip.Addr, noTouch bool) string {
	args := []string{"dyetrace check", quote(src), quote(dst)}
	if scheme != 0 {
		args = append(args, "--scheme", scheme.String())
	}
	if ip.Is6() {
		args = append(args, "--ip 6")
	}
	if noTouch {
		args = append(args, "--no-touch")
	}
	return strings.Join(args, " ")
}

// look is what shows a verdict that no flow explains, and where: the port, the guest or the tunnels that it speaks of, and if it
// does not, another probe.
func (j *judgement) look(r *Result) (command, host string) {
	p := j.Path
	again := checkCommand(p.Pair.Src.Ref(), p.Pair.Dst.Ref(), r.Scheme, p.Src, p.NoTouch)
	if r.Loss != nil && r.Loss.Decision == sequential.Above {
		return again + lossFlags(r.Loss.Test), ""
	}
	switch r.Kind {
	case CausePort:
		if command := j.lookForPort(r.Host); command != "" {
			return command, r.Host
		}
	case CauseGuestDown:
		for _, end := range []*plan.End{&p.From, &p.To} {
			if end.Host == r.Host && end.LinkDown && end.Port != "" {
				return "ovs-vsctl --columns=name,admin_state,link_state list Interface " + quote(end.Port), r.Host
			}
		}
	case CauseGuestSilent:
		if p.To.Port != "" && !p.NoTouch {
			return fmt.Sprintf("tcpdump -nei %s %s", quote(p.To.Port), j.filter()), p.To.Host
		}
	case CauseTunnel:
		return "ovs-vsctl --columns=name,type,options list Interface", r.Host
	case CauseBetweenHosts:
		if s := r.Segment; s != nil && s.From != nil && s.From.Host != s.To.Host {
			return underlayCommand(s.From.Host, s.To.Host, netip.Addr{}, netip.Addr{}), ""
		}
	}
	return again, ""
}

// lookForPort looks for what a host is said to lack: an instance's port, or the one that joins its bridges; empty where it is neither.
func (j *judgement) lookForPort(host string) string {
	p := j.Path
	gone := j.t != nil && j.t.PortAbsent // which the plan did not know
	for i, end := range []*plan.End{&p.From, &p.To} {
		mac := []stain.MAC{p.Pair.Src.MAC, p.Pair.Dst.MAC}[i]
		switch {
		case end.Host != host || end.Absent == "" && (i > 0 || !gone):
		case end.Port != "":
			return "ovs-vsctl --columns=name,ofport,error find Interface " + quote("name="+strconv.Quote(end.Port))
		default:
			return "ovs-vsctl --columns=name,external_ids find Interface " + quote(fmt.Sprintf("external_ids:attached-mac=%q", mac))
		}
	}
	if p.From.Host == host && p.From.Gap != "" || p.To.Host == host && p.To.Gap != "" {
		return "ovs-vsctl --columns=name,options find Interface type=patch"
	}
	return ""
}

// filter has tcpdump show probes of the pair, and what they are answered.
func (j *judgement) filter() string {
	what := "tcp"
	switch {
	case j.scheme() == stain.TCP:
	case j.Path.Src.Is6():
		what = "icmp6"
	default:
		what = "icmp"
	}
	return fmt.Sprintf("host %s and host %s and %s", j.Path.Src, j.Path.Dst, what)
}

// plain matches an argument that a shell takes as it is.
var plain = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=-]+$`)

// quote returns an argument as a shell reads it (POSIX, Shell Command Language, 2.2.2).
func quote(arg string) string {
	if plain.MatchString(arg) {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}
