package simulate

import "nixbastion/route"

// History is what a router would know beforehand of the builds that have an
// estimate.
func (t *Trace) History() route.History { return t.history() }
