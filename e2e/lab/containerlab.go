package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

const (
	// ContainerlabEnv names the environment variable that says which program containerlab is, if
	// not the one in PATH.
	ContainerlabEnv = "CONTAINERLAB"

	// labLabel marks what Docker has of a lab; its value is the lab's state directory.
	labLabel = "dyetrace-lab"

	// deployed is the topology file that containerlab gets, beside the one that it comes from.
	deployed = "topology/containerlab.clab.yml"
)

// containerlab makes nodes of containers, by the program containerlab on Docker. It gets the lab's own
// topology file with a few additions (deployment). Containers do not end with the process that
// raises the lab: after a kill -9, Down is what ends them.
type containerlab struct{}

func (containerlab) name() string { return Containerlab }

func (containerlab) missing(l *Lab) error {
	_, err := exec.LookPath(containerlabProgram())
	if err != nil {
		err = fmt.Errorf("lab: containerlab: %w; https://containerlab.dev/install, or $%s", err, ContainerlabEnv)
	}
	if other := lookFor("docker", "docker.io"); other != nil {
		return errors.Join(err, other)
	}
	ctx, cancel := context.WithTimeout(context.Background(), dockerWait)
	defer cancel()
	if _, other := docker(ctx, "version"); other != nil {
		return errors.Join(err, fmt.Errorf("lab: Docker Engine does not answer: %w", other))
	}
	images := make(map[string]bool)
	for _, n := range l.topology.Body.Nodes {
		images[n.Image] = true
	}
	for _, image := range slices.Sorted(maps.Keys(images)) {
		if _, other := docker(ctx, "image", "inspect", image); other != nil {
			err = errors.Join(err, fmt.Errorf("lab: image %s is not there; 'make clab-image' makes it", image))
		}
	}
	return err
}

// dockerWait bounds a question to Docker Engine that it answers from memory.
const dockerWait = 20 * time.Second

func containerlabProgram() string {
	if program := os.Getenv(ContainerlabEnv); program != "" {
		return program
	}
	return "containerlab"
}

func (c containerlab) raise(ctx context.Context, l *Lab, say func(string, ...any)) (hold, error) {
	if err := l.claimSubnet(ctx); err != nil {
		return nil, err
	}
	if err := l.writeDeployment(); err != nil {
		return nil, err
	}
	say("nodes: %d containers and %d links, by containerlab; management network %s",
		len(l.topology.Nodes()), len(l.topology.Body.Links), l.topology.Mgmt.Subnet)
	if err := l.deploy(ctx); err != nil {
		return nil, err
	}
	return noHold{}, l.findContainers(ctx)
}

// noHold is that of containers, which belong to Docker.
type noHold struct{}

func (noHold) release() error { return nil }
func (noHold) drop()          {}

// claimSubnet makes the lab's management network. Docker's networks share one space of addresses, so
// the topology's subnet may be taken, by another lab of the same file for one. Then the lab gets the
// next free one, and its files say so.
func (l *Lab) claimSubnet(ctx context.Context) error {
	const most = 200 // subnets to try: more labs than a machine runs
	wanted := l.topology.Mgmt.Subnet
	subnet := wanted
	for range most {
		_, err := docker(ctx, "network", "create", "--label", labLabel+"="+l.dir, "--subnet", subnet.String(), l.networkName())
		if err == nil {
			if subnet == wanted {
				return nil
			}
			return l.renumber(wanted, subnet)
		}
		if !strings.Contains(err.Error(), "overlaps with") {
			return fmt.Errorf("management network: %w", err)
		}
		if subnet = nextSubnet(subnet); !subnet.IsValid() {
			break
		}
	}
	return fmt.Errorf("management network: from %s on, no free subnet of Docker's", wanted)
}

func (l *Lab) networkName() string { return "dyetrace-" + l.state.Name }

// nextSubnet returns the subnet behind another, of the same size; the zero Prefix if there is none.
func nextSubnet(p netip.Prefix) netip.Prefix {
	a := p.Masked().Addr().As4()
	n := uint64(a[0])<<24 | uint64(a[1])<<16 | uint64(a[2])<<8 | uint64(a[3])
	if n += 1 << (32 - p.Bits()); n >= 1<<32 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), p.Bits())
}

// renumber moves all addresses of the management network in the lab's files to another subnet.
func (l *Lab) renumber(from, to netip.Prefix) error {
	for _, name := range []string{l.state.Topology + ".clab.yml", "overlay.yaml"} {
		path := l.path(filepath.Join("topology", name))
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var doc yaml.Node
		if err := yaml.Unmarshal(text, &doc); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		moveAddresses(&doc, from, to)
		if text, err = yaml.Marshal(&doc); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return l.load(os.DirFS(l.path("topology")), l.state.Topology)
}

// moveAddresses gives every address and prefix of a subnet, standing alone in a YAML document, the
// same place in another subnet.
func moveAddresses(n *yaml.Node, from, to netip.Prefix) {
	for _, child := range n.Content {
		moveAddresses(child, from, to)
	}
	if n.Kind != yaml.ScalarNode {
		return
	}
	addr, bits, prefixed := strings.Cut(n.Value, "/")
	if ip, err := netip.ParseAddr(addr); err == nil && from.Contains(ip) {
		base, old := to.Masked().Addr().As4(), ip.As4()
		for i := range base {
			base[i] |= old[i] & hostByte(to.Bits(), i)
		}
		n.Value = netip.AddrFrom4(base).String()
		if prefixed {
			n.Value += "/" + bits
		}
	}
}

// hostByte returns byte i of the host mask of an IPv4 prefix.
func hostByte(bits, i int) byte { return byte(uint32(1<<(32-bits)-1) >> (24 - 8*i)) }

// deployment is a topology as containerlab gets it: with the binary, and with the state directory
// in its place, as the nodes of other runners have them; with a mark by which its containers are found
// again; and silent on links that carry no address.
func (l *Lab) deployment() *Topology {
	t := *l.topology
	t.Name, t.Mgmt.Network = l.state.Name, l.networkName()
	t.Body.Nodes = make(map[string]NodeSpec)
	for name, n := range l.topology.Body.Nodes {
		n.Binds = append(slices.Clone(n.Binds), l.binary+":"+toolsDir+"/bin/dyetrace:ro", l.dir+":"+l.dir)
		n.Labels = maps.Clone(n.Labels)
		if n.Labels == nil {
			n.Labels = make(map[string]string)
		}
		n.Labels[labLabel] = l.dir
		n.Sysctls = make(map[string]string)
		for key, value := range quietSysctls {
			n.Sysctls["net."+strings.ReplaceAll(key, "/", ".")] = value
		}
		t.Body.Nodes[name] = n
	}
	return &t
}

func (l *Lab) writeDeployment() error {
	text, err := yaml.Marshal(l.deployment())
	if err != nil {
		return err
	}
	return os.WriteFile(l.path(deployed), text, 0o644)
}

// deploy has containerlab do its part. It ends well even if a command of the topology's failed, but
// says so.
func (l *Lab) deploy(ctx context.Context) error {
	const tries = 20 // at the least a second: as long as another lab takes to be removed
	var said string
	var err error
	for range tries {
		said, err = l.containerlab(ctx, "deploy", "--max-workers", strconv.Itoa(len(l.topology.Nodes())))
		// It asks Docker for all containers, and then for each. If one of another lab is removed in
		// between, it gives up; it has done nothing yet.
		if err == nil || !strings.Contains(said, "could not list containers") || !strings.Contains(said, "cannot be found") {
			break
		}
	}
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(said) {
		if _, text, found := strings.Cut(line, "level=error msg="); found {
			if plain, err := strconv.Unquote(strings.TrimSpace(text)); err == nil {
				text = plain
			}
			errs = append(errs, fmt.Errorf("containerlab: %s", strings.TrimSpace(text)))
		}
	}
	return errors.Join(errs...)
}

// containerlab runs a verb of containerlab on the lab's file, and returns what it said, which is
// in the lab's logs, too.
func (l *Lab) containerlab(ctx context.Context, verb string, flags ...string) (string, error) {
	cmd := exec.CommandContext(ctx, containerlabProgram(), append([]string{verb, "--topo", l.path(deployed)}, flags...)...)
	cmd.Dir = l.dir
	cmd.Env = append(os.Environ(), "CLAB_LABDIR_BASE="+l.dir)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // a Ctrl-C is for us, who clear up
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if writing := os.WriteFile(l.path("log/containerlab-"+verb+".log"), out, 0o644); writing != nil && err == nil {
		err = writing
	}
	if err != nil {
		return string(out), fmt.Errorf("containerlab %s: %w%s", verb, err, lastWords(string(out)))
	}
	return string(out), nil
}

// findContainers notes the first process of each node.
func (l *Lab) findContainers(ctx context.Context) error {
	ids, err := containersOf(ctx, l.dir)
	if err != nil {
		return err
	}
	format := `{{index .Config.Labels "clab-node-name"}} {{.State.Pid}}`
	out, err := docker(ctx, append([]string{"inspect", "--format", format}, ids...)...)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(out) {
		node, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		pid, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("docker inspect: %s: pid %q", node, number)
		}
		p, err := identify(node, pid)
		if err != nil {
			return fmt.Errorf("%s: its container does not run on this machine: %w", node, err)
		}
		l.state.Nodes = append(l.state.Nodes, p)
	}
	if n := len(l.topology.Nodes()); len(l.state.Nodes) != n {
		return fmt.Errorf("%d containers run, want %d", len(l.state.Nodes), n)
	}
	return l.state.write(l.dir)
}

// containersOf returns the ids of a lab's containers, running or not.
func containersOf(ctx context.Context, dir string) ([]string, error) {
	out, err := docker(ctx, "ps", "--all", "--quiet", "--filter", "label="+labLabel+"="+dir)
	return strings.Fields(out), err
}

func (containerlab) remains(ctx context.Context, dir string) (int, error) {
	ids, err := containersOf(ctx, dir)
	return len(ids), err
}

func (c containerlab) end(ctx context.Context, l *Lab, recorded []process) error {
	ids, err := containersOf(ctx, l.dir)
	if err != nil {
		// Without its engine no container lives on, unless others keep it.
		if slices.ContainsFunc(recorded, process.alive) {
			return err
		}
		return nil
	}
	if _, there := os.Stat(l.path(deployed)); there == nil && len(ids) > 0 {
		// It knows what else it told the host of its nodes. What it does not get done is done below.
		_, _ = l.containerlab(ctx, "destroy", "--cleanup")
		if ids, err = containersOf(ctx, l.dir); err != nil {
			return err
		}
	}
	if len(ids) > 0 {
		if _, err := docker(ctx, append([]string{"rm", "--force", "--volumes"}, ids...)...); err != nil {
			return err
		}
	}
	return l.removeNetwork(ctx)
}

// removeNetwork removes the lab's management network, whose containers are gone. Docker may count
// them for a moment yet.
func (l *Lab) removeNetwork(ctx context.Context) error {
	out, err := docker(ctx, "network", "ls", "--quiet", "--filter", "label="+labLabel+"="+l.dir)
	networks := strings.Fields(out)
	if err != nil || len(networks) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dockerWait)
	defer cancel()
	for try := 0; ; try++ {
		if try > 0 && try%forgetAfter == 0 {
			forgetEndpoints(ctx, networks)
		}
		_, err := docker(ctx, append([]string{"network", "rm"}, networks...)...)
		if err == nil || !strings.Contains(err.Error(), "has active endpoints") {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// forgetAfter is after how many tries to remove a network Docker is told to forget who is gone, and again after as many.
const forgetAfter = 10

// forgetEndpoints has Docker forget those at networks whose containers are gone: it may count one for ever that was removed while it
// was joined. A container that is there keeps the network.
func forgetEndpoints(ctx context.Context, networks []string) {
	for _, n := range networks {
		out, err := docker(ctx, "network", "inspect", "--format", "{{range .Containers}}{{println .Name}}{{end}}", n)
		if err != nil {
			continue
		}
		for _, name := range strings.Fields(out) {
			if _, err := docker(ctx, "container", "inspect", name); err != nil && strings.Contains(strings.ToLower(err.Error()), "no such container") {
				_, _ = docker(ctx, "network", "disconnect", "--force", n, name) // whether it helped, the next try tells
			}
		}
	}
}

// docker runs Docker's command line. The engine is the one that it finds by itself: $DOCKER_HOST, or
// its context.
func docker(ctx context.Context, args ...string) (string, error) {
	out, err := output(ctx, nil, "docker", args...)
	return string(out), err
}
