package spec

import (
	"fmt"
	"strings"
)

// Query says who wants to be attached.
type Query struct {
	// Project is an ID, Environment and Region are names.
	Project, Environment string
	Kind                 Kind
	Runtime              string
	Region               string
	// Passive asks for the environment's passive network, which must be in Region.
	Passive bool
}

// Resolution is the answer: a network, or the reason for none.
type Resolution struct {
	// Network is the active network of the region, or the passive one if that was
	// asked for; not set with Bypass.
	Network Network
	// Passive is the network to use when the region is unavailable; nil: there is
	// none, or it is the one that was asked for.
	Passive *Network
	// Bypass is the reason why the sandbox has no tunnel; empty: it has one.
	Bypass string
}

// FieldError says that a field of a query cannot be what it is.
type FieldError struct {
	Field, Value string
	// Want says what would be right.
	Want string
}

// Error implements error.
func (e *FieldError) Error() string { return fmt.Sprintf("%s %q: want %s", e.Field, e.Value, e.Want) }

// UnknownProjectError says that no project has the ID.
type UnknownProjectError struct{ Project string }

// Error implements error.
func (e *UnknownProjectError) Error() string {
	return fmt.Sprintf("project %q is not in the desired state; attach with the ID of one that is, or add it", e.Project)
}

// UnknownEnvironmentError says that the project has no such environment.
type UnknownEnvironmentError struct {
	Project, Environment string
	// Known are the environments that it has.
	Known []string
}

// Error implements error.
func (e *UnknownEnvironmentError) Error() string {
	return fmt.Sprintf("project %q has no environment %q; it has %s", e.Project, e.Environment, list(e.Known))
}

// NoNetworkError says that the environment has no active network in the region.
type NoNetworkError struct {
	Project, Environment, Region string
	// Regions are those in which it has one.
	Regions []string
}

// Error implements error.
func (e *NoNetworkError) Error() string {
	return fmt.Sprintf("environment %q of project %q has no active network in region %q (it has one in: %s); give it one there, or run the sandbox where it has one",
		e.Environment, e.Project, e.Region, list(e.Regions))
}

// NoPassiveError says that the environment has no passive network in the region.
type NoPassiveError struct {
	Project, Environment, Region string
	// Elsewhere is the region in which it has one; empty: it has none at all.
	Elsewhere string
}

// Error implements error.
func (e *NoPassiveError) Error() string {
	if e.Elsewhere == "" {
		return fmt.Sprintf("environment %q of project %q has no passive network; give it one in region %q", e.Environment, e.Project, e.Region)
	}
	return fmt.Sprintf("the passive network of environment %q of project %q is in region %q, not in %q; attach there", e.Environment, e.Project, e.Elsewhere, e.Region)
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// Resolve finds the network of a sandbox in a valid state. The edge runtime and
// builds that are not included bypass, wherever they run. The error is a
// [*FieldError], [*UnknownProjectError], [*UnknownEnvironmentError], [*NoNetworkError]
// or [*NoPassiveError].
func Resolve(s State, q Query) (Resolution, error) {
	if err := q.check(); err != nil {
		return Resolution{}, err
	}
	project, ok := s.Project(q.Project)
	if !ok {
		return Resolution{}, &UnknownProjectError{Project: q.Project}
	}
	env, ok := project.environment(q.Environment)
	if !ok {
		return Resolution{}, &UnknownEnvironmentError{Project: q.Project, Environment: q.Environment, Known: project.environmentNames()}
	}
	if q.Runtime == RuntimeEdge {
		return Resolution{Bypass: BypassEdge}, nil
	}
	if q.Kind == KindBuild && !env.Builds {
		return Resolution{Bypass: BypassBuilds}, nil
	}
	if q.Passive {
		return s.resolvePassive(q, env)
	}
	var regions []string
	for _, id := range env.Active {
		n, ok := s.Network(id)
		if !ok {
			continue
		}
		if n.Region == q.Region {
			return Resolution{Network: n, Passive: s.passive(env)}, nil
		}
		regions = append(regions, n.Region)
	}
	return Resolution{}, &NoNetworkError{Project: q.Project, Environment: q.Environment, Region: q.Region, Regions: regions}
}

func (s State) resolvePassive(q Query, env Environment) (Resolution, error) {
	n := s.passive(env)
	switch {
	case n == nil:
		return Resolution{}, &NoPassiveError{Project: q.Project, Environment: q.Environment, Region: q.Region}
	case n.Region != q.Region:
		return Resolution{}, &NoPassiveError{Project: q.Project, Environment: q.Environment, Region: q.Region, Elsewhere: n.Region}
	}
	return Resolution{Network: *n}, nil
}

func (q Query) check() error {
	switch {
	case q.Kind != KindFunction && q.Kind != KindBuild:
		return &FieldError{Field: "kind", Value: string(q.Kind), Want: "function or build"}
	case !ValidRuntime(q.Runtime):
		return &FieldError{Field: "runtime", Value: q.Runtime, Want: "nodejs, python, go, ruby, edge or another token in lower case"}
	case !ValidID(q.Project):
		return &FieldError{Field: "project", Value: q.Project, Want: "the ID of a project"}
	case !ValidID(q.Environment):
		return &FieldError{Field: "environment", Value: q.Environment, Want: "the name of an environment"}
	case !ValidLabel(q.Region):
		return &FieldError{Field: "region", Value: q.Region, Want: "the name of a region, such as iad1"}
	}
	return nil
}

func (p Project) environment(name string) (Environment, bool) {
	for _, e := range p.Environments {
		if e.Name == name {
			return e, true
		}
	}
	return Environment{}, false
}

func (p Project) environmentNames() []string {
	names := make([]string, len(p.Environments))
	for i, e := range p.Environments {
		names[i] = e.Name
	}
	return names
}

func (s State) passive(env Environment) *Network {
	if n, ok := s.Network(env.Passive); ok {
		return &n
	}
	return nil
}
