package doctor

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/cmd/dyetrace/internal/access"
	"github.com/dyetrace/dyetrace/pki"
)

// expiresSoon is when to think of renewal: two weeks leave room for a holiday.
const expiresSoon = 14 * 24 * time.Hour

const peersFix = "`dyetrace peers` says why; see the group bgp of the controller's configuration, and that of the peers"

// Client returns the checks of a machine from which Dyetrace is used. resolve says which
// controller is meant.
func Client(resolve func() (access.Context, error)) []Check {
	const group = "client"
	c := &client{resolve: resolve}
	return []Check{
		{group, "context", "give --server, --ca, --cert and --key, or write a context file (docs/cli.md)", c.context},
		{group, "certificate", "renew it: dyetrace pki issue --renew (docs/certificates.md)", c.certificate},
		{group, "controller", "see that `dyetrace serve` runs there, and that nothing in between drops the connection", c.reach},
		{group, "agents", "start the agents that are missing; `dyetrace hooks` says why a hook is not live", c.agents},
		{group, "peers", peersFix, c.peers},
	}
}

// client carries what one check found out to the next.
type client struct {
	resolve func() (access.Context, error)
	ctx     *access.Context
	status  *dyetracev1.GetStatusResponse
}

func (c *client) context(context.Context) (string, error) {
	ctx, err := c.resolve()
	if err != nil {
		return "", err
	}
	c.ctx = &ctx
	if ctx.Source == "" {
		return ctx.Server, nil
	}
	return fmt.Sprintf("%s, from %s", ctx.Server, ctx.Source), nil
}

func (c *client) certificate(context.Context) (string, error) {
	if c.ctx == nil {
		return "", skip("no context")
	}
	now := time.Now()
	p, err := pki.Load(c.ctx.TLS, now)
	if err != nil {
		return "", err
	}
	if p.Role != pki.RoleUser {
		return "", &finding{Fail, "use a user's certificate: dyetrace pki issue --role user", fmt.Errorf("it is for %s %s", p.Role, p.Name)}
	}
	detail := fmt.Sprintf("user %s, valid to %s", p.Name, p.Leaf.NotAfter.UTC().Format(time.DateOnly))
	if left := p.Leaf.NotAfter.Sub(now); left < expiresSoon {
		return "", warn("renew it: dyetrace pki issue --renew", "%s, %d days from now", detail, int(left.Hours()/24))
	}
	if err := p.Verify(now); err != nil {
		return "", warn("nothing, if the controller trusts another CA than you do", "%s, but %v", detail, err)
	}
	return detail, nil
}

func (c *client) reach(ctx context.Context) (string, error) {
	if c.ctx == nil {
		return "", skip("no context")
	}
	api, closeFn, err := c.ctx.Client()
	if err != nil {
		return "", err
	}
	defer closeFn()
	begun := time.Now()
	res, err := api.GetStatus(ctx, connect.NewRequest(&dyetracev1.GetStatusRequest{}))
	if err != nil {
		return "", err
	}
	c.status = res.Msg
	return fmt.Sprintf("version %s, answered in %v", c.status.GetVersion(), time.Since(begun).Round(time.Millisecond)), nil
}

func (c *client) agents(context.Context) (string, error) {
	if c.status == nil {
		return "", skip("controller not reached")
	}
	ready, expected := c.status.GetHostsReady(), c.status.GetHostsExpected()
	detail := fmt.Sprintf("%d of %d ready", ready, expected)
	if ready >= expected {
		return detail, nil
	}
	if problems := c.status.GetProblems(); len(problems) > 0 {
		detail += ": " + problems[0]
		if more := len(problems) - 1; more > 0 {
			detail += fmt.Sprintf(" (and %d more, see `dyetrace status`)", more)
		}
	}
	return "", fmt.Errorf("%s", detail)
}

// peers looks at BGP sessions. Without one, routes are not compared, and nothing else is amiss.
func (c *client) peers(context.Context) (string, error) {
	if c.status == nil {
		return "", skip("controller not reached")
	}
	up, all := c.status.GetPeersEstablished(), c.status.GetPeers()
	switch {
	case all == 0:
		return "", skip("no BGP configured")
	case up < all:
		return "", warn(peersFix, "%d of %d established", up, all)
	}
	return fmt.Sprintf("%d of %d established", up, all), nil
}
