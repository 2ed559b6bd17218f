package report

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// Run is one execution of a check, without its pairs.
type Run struct {
	Run     string     `json:"run"`
	State   string     `json:"state"`
	Scope   string     `json:"scope"`
	Options Options    `json:"options"`
	Verdict string     `json:"verdict"`
	Started *time.Time `json:"started"`
	Ended   *time.Time `json:"ended"`
	// Total is the number of pairs planned; Counts holds those judged so far.
	Total  uint32 `json:"total"`
	Counts Counts `json:"counts"`
	// Losses are the parts of ways that lose more than is allowed, by all pairs that pass them;
	// Probes were sent to look. Of continuous runs under way.
	Losses []SegmentLoss `json:"losses"`
	Probes uint64        `json:"probes"`
}

// Asked writes scope and options as the arguments of check that ask for them.
func (r Run) Asked() string {
	return strings.TrimSpace(r.Scope + " " + r.Options.String())
}

// Options say how the pairs of a run are probed.
type Options struct {
	// Scheme is auto, tcp or icmp.
	Scheme string `json:"scheme"`
	// IP is auto, 4 or 6.
	IP      string `json:"ip"`
	NoTouch bool   `json:"no_touch"`
	// Loss: the loss of every pair is measured. MaxLoss is the share that is too much; 0 is the
	// default.
	Loss    bool    `json:"loss"`
	MaxLoss float64 `json:"max_loss"`
	// Continuous: until it is cancelled, or its time is up; Rate is in probes a second, 0 the
	// controller's.
	Continuous bool    `json:"continuous"`
	Rate       float64 `json:"rate"`
	// MTU: large packets are tried between hosts too.
	MTU bool `json:"mtu"`
}

// NewOptions returns the view of options; nil is all found out.
func NewOptions(o *dyetracev1.ProbeOptions) Options {
	return Options{Scheme(o.GetScheme(), Auto), IPVersion(o.GetIpVersion()), o.GetNoTouch(), o.GetLoss(), o.GetMaxLoss(), o.GetContinuous(), o.GetRate(), o.GetMtu()}
}

// String writes options as flags of check; those that are the default are left out.
func (o Options) String() string {
	var flags []string
	if o.Scheme != Auto {
		flags = append(flags, "--scheme "+o.Scheme)
	}
	if o.IP != Auto {
		flags = append(flags, "--ip "+o.IP)
	}
	if o.NoTouch {
		flags = append(flags, "--no-touch")
	}
	if o.Loss {
		flags = append(flags, "--loss")
	}
	if o.MaxLoss != 0 {
		flags = append(flags, "--max-loss "+strconv.FormatFloat(100*o.MaxLoss, 'g', 6, 64)) // as it was asked for
	}
	if o.Continuous {
		flags = append(flags, "--continuous")
	}
	if o.Rate != 0 {
		flags = append(flags, fmt.Sprintf("--rate %g", o.Rate))
	}
	if o.MTU {
		flags = append(flags, "--mtu")
	}
	return strings.Join(flags, " ")
}

// Check is a run with its pairs: the one object that `check -o json` prints. Fields are added
// to it, never renamed or taken away.
type Check struct {
	Run
	// Findings are what pairs that are not healthy have in common, what explains most first.
	Findings []Finding `json:"findings"`
	Pairs    []Pair    `json:"pairs"`
	// Transitions are the last changes in a continuous run, the oldest first.
	Transitions []Pair `json:"transitions"`
}

// Counts are numbers of pairs by verdict.
type Counts struct {
	Healthy uint32 `json:"healthy"`
	Faulty  uint32 `json:"faulty"`
	Silent  uint32 `json:"silent"`
	Policy  uint32 `json:"policy"`
	Unknown uint32 `json:"unknown"`
}

// Add counts one more pair.
func (c *Counts) Add(verdict string) {
	switch verdict {
	case "healthy":
		c.Healthy++
	case "faulty":
		c.Faulty++
	case "silent":
		c.Silent++
	case "policy":
		c.Policy++
	case "unknown":
		c.Unknown++
	}
}

// Judged returns how many pairs have a verdict.
func (c Counts) Judged() uint32 { return c.Healthy + c.Faulty + c.Silent + c.Policy + c.Unknown }

// Pair is the verdict on one ordered pair.
type Pair struct {
	PairRef
	Verdict string `json:"verdict"`
	// SrcIP and DstIP are the addresses probed.
	SrcIP string `json:"src_ip"`
	DstIP string `json:"dst_ip"`
	// Scheme is how the probe was stained that the verdict is from, tcp or icmp; empty where
	// none was sent. SchemeReason says why that one, where nobody asked for it.
	Scheme       string `json:"scheme"`
	SchemeReason string `json:"scheme_reason"`
	// NoTouch: no guest was to see a probe. Samples of direction reply are of a probe of its own.
	NoTouch bool `json:"no_touch"`
	// Segment is SegmentFrom → SegmentTo in words; nil where nothing failed.
	Segment     *string `json:"segment"`
	SegmentFrom *Point  `json:"segment_from"`
	SegmentTo   *Point  `json:"segment_to"`
	// Direction is forward or reply: which way what was lost was going.
	Direction string `json:"direction"`
	Host      string `json:"host"`
	Cause     string `json:"cause"`
	// CauseKind is of what sort the cause is, for programs; empty where there is none.
	CauseKind string `json:"cause_kind"`
	RTT       int64  `json:"rtt_ns"`
	Probes    uint32 `json:"probes"`
	// Duplicates are samples beyond the first of one probe at one point.
	Duplicates uint32 `json:"duplicates"`
	Flow       *Flow  `json:"flow"`
	// Command shows what is wrong; CommandHost is where to type it, empty for one of dyetrace's own. TraceCommand shows what
	// the flows of TraceHost do with the packet, where Command shows another thing.
	Command      string `json:"command"`
	CommandHost  string `json:"command_host"`
	TraceCommand string `json:"trace_command,omitempty"`
	TraceHost    string `json:"trace_host,omitempty"`
	// LogicalCommand is for OVN's central node.
	LogicalCommand string   `json:"logical_command,omitempty"`
	Samples        []Sample `json:"samples"`
	// Loss is what a test of it says; nil where one probe was enough. Latencies are of all probes
	// that arrived, where they were measured.
	Loss      *Loss     `json:"loss"`
	Latencies []Latency `json:"latencies"`
	// Since when the verdict is so, in a continuous run; Before is what it was, and Changes how
	// often it or its cause changed.
	Since   *time.Time `json:"since"`
	Before  string     `json:"before"`
	Changes uint32     `json:"changes"`
	// Underlay is what UDP between the hosts' tunnel addresses showed; nil where nobody asked.
	Underlay *Underlay `json:"underlay"`
}

// Point is a sampling point.
type Point struct {
	Host   string `json:"host"`
	Bridge string `json:"bridge"`
	Kind   string `json:"kind"`
}

func (p Point) String() string { return p.Host + "/" + p.Bridge + " " + p.Kind }

// Flow is one flow of a bridge.
type Flow struct {
	Bridge   string `json:"bridge"`
	Table    uint32 `json:"table"`
	Priority uint32 `json:"priority"`
	Match    string `json:"match"`
	Actions  string `json:"actions"`
	// Cookie is written as ovs-ofctl does, 0x…: JSON's numbers end at 53 bits.
	Cookie string `json:"cookie"`
	// Owner is dyetrace, ovn, neutron or antrea; empty where nobody is known.
	Owner string `json:"owner,omitempty"`
	// Stage, LogicalFlow and ACL are what OVN has the flow for.
	Stage       string       `json:"stage,omitempty"`
	LogicalFlow *LogicalFlow `json:"logical_flow,omitempty"`
	ACL         *ACL         `json:"acl,omitempty"`
}

// LogicalFlow is a row of OVN's southbound database.
type LogicalFlow struct {
	UUID     string `json:"uuid"`
	Datapath string `json:"datapath"`
	Pipeline string `json:"pipeline"`
	Table    uint32 `json:"table"`
	Priority uint32 `json:"priority"`
	Match    string `json:"match"`
	Actions  string `json:"actions"`
	Source   string `json:"source"`
}

// ACL is an access control list of OVN's.
type ACL struct {
	Hint      string `json:"hint"` // begins its UUID in the northbound database
	Name      string `json:"name"`
	Direction string `json:"direction"`
}

func newFlow(f *dyetracev1.FlowRef) *Flow {
	if f == nil {
		return nil
	}
	v := &Flow{
		Bridge: f.GetBridge(), Table: f.GetTable(), Priority: f.GetPriority(),
		Match: f.GetMatch(), Actions: f.GetActions(), Cookie: fmt.Sprintf("0x%x", f.GetCookie()), Stage: f.GetStage(),
	}
	if f.GetOwner() != 0 {
		v.Owner = strings.ToLower(strings.TrimPrefix(f.GetOwner().String(), "FLOW_OWNER_"))
	}
	if l := f.GetLogicalFlow(); l != nil {
		v.LogicalFlow = &LogicalFlow{l.GetUuid(), l.GetDatapath(), l.GetPipeline(), l.GetTable(), l.GetPriority(), l.GetMatch(), l.GetActions(), l.GetSource()}
	}
	if a := f.GetAcl(); a != nil {
		v.ACL = &ACL{a.GetHint(), a.GetName(), a.GetDirection()}
	}
	return v
}

func (f Flow) String() string {
	match := fmt.Sprintf("priority=%d", f.Priority)
	if f.Match != "" {
		match += "," + f.Match
	}
	return fmt.Sprintf("%s: cookie=%s, table=%d, %s actions=%s", f.Bridge, f.Cookie, f.Table, match, f.Actions)
}

// Sample is one sampling point of a pair's path, and whether it saw the packet.
type Sample struct {
	Point
	Direction string `json:"direction"`
	Seen      bool   `json:"seen"`
	// At is nanoseconds after the first sample; 0 where not seen.
	At     int64  `json:"at_ns"`
	TTL    uint32 `json:"ttl"`
	TunSrc string `json:"tun_src,omitempty"`
	TunID  uint32 `json:"tun_id,omitempty"`
}

// NewRun returns the view of a run.
func NewRun(r *dyetracev1.Run) Run {
	c := r.GetCounts()
	losses := make([]SegmentLoss, 0, len(r.GetLosses()))
	for _, l := range r.GetLosses() {
		losses = append(losses, newSegmentLoss(l))
	}
	return Run{
		Losses: losses, Probes: r.GetProbes(),
		Run:     r.GetId(),
		State:   State(r.GetState()),
		Scope:   Scope(r.GetScope()),
		Options: NewOptions(r.GetOptions()),
		Verdict: Verdict(r.GetVerdict()),
		Started: Time(r.GetStarted()),
		Ended:   Time(r.GetEnded()),
		Total:   r.GetTotal(),
		Counts: Counts{
			Healthy: c.GetHealthy(), Faulty: c.GetFaulty(), Silent: c.GetSilent(),
			Policy: c.GetPolicy(), Unknown: c.GetUnknown(),
		},
	}
}

// NewCheck returns the view of a run and its pairs, sorted by networks and names.
func NewCheck(r *dyetracev1.Run, pairs []*dyetracev1.PairResult) Check {
	c := Check{
		Run: NewRun(r), Findings: []Finding{}, Pairs: make([]Pair, 0, len(pairs)), Transitions: make([]Pair, 0, len(r.GetTransitions())),
	}
	for _, p := range r.GetTransitions() {
		c.Transitions = append(c.Transitions, newPair(p))
	}
	for _, f := range r.GetFindings() {
		c.Findings = append(c.Findings, newFinding(f))
	}
	for _, p := range pairs {
		c.Pairs = append(c.Pairs, newPair(p))
	}
	slices.SortStableFunc(c.Pairs, func(a, b Pair) int {
		return cmp.Or(
			cmp.Compare(a.SrcNetwork, b.SrcNetwork), cmp.Compare(a.Src, b.Src),
			cmp.Compare(a.DstNetwork, b.DstNetwork), cmp.Compare(a.Dst, b.Dst),
		)
	})
	return c
}

// NewPair returns the view of one verdict.
func NewPair(p *dyetracev1.PairResult) Pair { return newPair(p) }

func newPair(p *dyetracev1.PairResult) Pair {
	v := Pair{
		PairRef: newPairRef(p.GetSrc(), p.GetDst()),
		Verdict: Verdict(p.GetVerdict()),
		SrcIP:   p.GetSrcIp(), DstIP: p.GetDstIp(),
		Scheme: Scheme(p.GetScheme(), ""), SchemeReason: p.GetSchemeReason(),
		NoTouch:    p.GetNoTouch(),
		Host:       p.GetHost(),
		Cause:      p.GetCause(),
		CauseKind:  CauseKind(p.GetCauseKind()),
		RTT:        p.GetRttNs(),
		Probes:     p.GetProbes(),
		Duplicates: p.GetDuplicates(),
		Command:    p.GetCommand(), CommandHost: p.GetCommandHost(),
		TraceCommand: p.GetTraceCommand(), TraceHost: p.GetTraceHost(),

		LogicalCommand: p.GetLogicalCommand(),
		Samples:        make([]Sample, 0, len(p.GetSamples())),
		Loss:           newLoss(p.GetLoss()),
		Latencies:      make([]Latency, 0, len(p.GetLatencies())),
		Underlay:       NewUnderlay(p.GetUnderlay()),
		Since:          Time(p.GetSince()),
		Changes:        p.GetChanges(),
	}
	if b := p.GetBefore(); b != dyetracev1.Verdict_VERDICT_UNSPECIFIED {
		v.Before = Verdict(b)
	}
	for _, l := range p.GetLatencies() {
		v.Latencies = append(v.Latencies, newLatency(l))
	}
	if s := p.GetSegment(); s != nil {
		v.SegmentFrom, v.SegmentTo = newPoint(s.GetFrom()), newPoint(s.GetTo())
		v.Direction = Direction(s.GetDirection())
		words := segmentWords(v.SegmentFrom, v.SegmentTo)
		v.Segment = &words
	}
	v.Flow = newFlow(p.GetFlow())
	for _, s := range p.GetSamples() {
		sample := Sample{
			Direction: Direction(s.GetDirection()), Seen: s.GetSeen(), At: s.GetAtNs(),
			TTL: s.GetTtl(), TunSrc: s.GetTunSrc(), TunID: s.GetTunId(),
		}
		if point := newPoint(s.GetPoint()); point != nil {
			sample.Point = *point
		}
		v.Samples = append(v.Samples, sample)
	}
	return v
}

func newPoint(p *dyetracev1.Point) *Point {
	if p == nil {
		return nil
	}
	return &Point{p.GetHost(), p.GetBridge(), Kind(p.GetKind())}
}

// segmentWords writes a segment. Without a first point the packet was lost before anybody saw
// it; without a second one after the last who should.
func segmentWords(from, to *Point) string {
	a, b := "injection", "end"
	if from != nil {
		a = from.String()
	}
	if to != nil {
		b = to.String()
	}
	return a + " → " + b
}
