package lab

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Names of what a lab's nodes can be made of.
const (
	Namespaces   = "namespaces"   // of this machine, on its files: light, needs nothing but Open vSwitch
	Containerlab = "containerlab" // containers of the image that the topology names, by containerlab and Docker
)

// RunnerEnv names the environment variable that says what nodes are made of where Options do not.
const RunnerEnv = "DYETRACE_LAB_RUNNER"

// runner makes a lab's nodes. Whatever a node is made of, it has a first process, and all else
// about it, commands, files and sockets, goes by way of that one's namespaces.
type runner interface {
	name() string
	// missing returns what this machine lacks to run the lab, nil if nothing.
	missing(l *Lab) error
	// raise makes the nodes of a lab whose files are in its state directory, joins them by the
	// topology's links, and runs what the topology has them run. The nodes' first processes are
	// in the state when it returns. What it has begun when it fails is ended by end.
	raise(ctx context.Context, l *Lab, say func(string, ...any)) (hold, error)
	// remains returns how many nodes there are of the lab that has a state directory, whatever
	// became of its files.
	remains(ctx context.Context, dir string) (int, error)
	// end ends all of these nodes, and returns when they are gone.
	end(ctx context.Context, l *Lab, recorded []process) error
}

// hold is what nodes hang on while their lab is not up yet: with most runners they end as soon as
// the process that raises it does.
type hold interface {
	release() error // lets the nodes outlive this process
	drop()          // does not, unless released
}

var runners = []runner{namespaces{}, containerlab{}}

// Runners returns the names of all runners, the default first.
func Runners() []string {
	var names []string
	for _, r := range runners {
		names = append(names, r.name())
	}
	return names
}

// runnerOf returns the runner of a name. An empty name is that of the environment, or the default.
func runnerOf(name string) (runner, error) {
	if name == "" {
		name = os.Getenv(RunnerEnv)
	}
	if name == "" {
		return runners[0], nil
	}
	if i := slices.Index(Runners(), name); i >= 0 {
		return runners[i], nil
	}
	return nil, fmt.Errorf("lab: runner %q: want one of %s", name, strings.Join(Runners(), ", "))
}

// runnersOf returns the runners that may have made a lab: the one that its state names, or, where
// there is no state, any.
func runnersOf(s *state) []runner {
	if s == nil {
		return runners
	}
	if s.Runner == "" { // written before there were others
		return runners[:1]
	}
	if r, err := runnerOf(s.Runner); err == nil {
		return []runner{r}
	}
	return runners
}
