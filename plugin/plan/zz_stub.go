package plan

import "github.com/dyetrace/dyetrace/plugin/inventory"

type Options struct {
	Version inventory.IPVersion
	NoTouch bool
}
