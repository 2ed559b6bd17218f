package verdict

import (
	"github.com/dyetrace/dyetrace/plugin/plan"
	"github.com/dyetrace/dyetrace/stain"
)

type Track struct {
	Path   *plan.Path
	Scheme stain.Scheme
	Result Result
}

func Combine(tracks []Track, asked stain.Scheme) Result { return tracks[len(tracks)-1].Result }

func Unanswered(p *plan.Path, a *Attempt) bool { return false }
