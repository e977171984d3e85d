package config

import (
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// validateLocality checks how requests are spread over localities; outlier says
// that failing endpoints are taken out.
func validateLocality(c *checker, l *networking.LocalityLoadBalancerSetting, outlier bool) {
	if len(l.GetDistribute()) > 0 && len(l.GetFailover()) > 0 {
		c.at("failover").failf("is set beside distribute; keep one")
		return
	}
	if len(l.GetFailover()) > 0 {
		for i, label := range l.GetFailoverPriority() {
			switch label {
			case "topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone":
				c.index("failoverPriority", i).failf("%q is a part of the locality, which failover decides about; keep one", label)
			}
		}
	}
	from := make([]string, len(l.GetDistribute()))
	for i, d := range l.GetDistribute() {
		from[i] = d.GetFrom()
		at := c.index("distribute", i)
		// From the back of the alphabet: a wildcard may come after what it is not for.
		to := slices.Sorted(maps.Keys(d.GetTo()))
		slices.Reverse(to)
		var total uint64
		for _, k := range to {
			if w := d.GetTo()[k]; w < 1 || w > 100 {
				at.key("to", k).failf("%d is not a share; use 1-100, or leave the locality out", w)
			}
			total += uint64(d.GetTo()[k])
		}
		if total != 100 {
			at.at("to").failf("adds up to %d; it must be 100", total)
		}
		validateLocalities(to, func(j int) *checker { return at.key("to", to[j]) })
	}
	validateLocalities(from, func(i int) *checker { return c.index("distribute", i).at("from") })
	if !outlier && (len(l.GetFailover()) > 0 || len(l.GetFailoverPriority()) > 0) {
		c.warnf("has no outlierDetection beside it: only endpoints that are not ready are failed over from")
	}
	for i, f := range l.GetFailover() {
		at := c.index("failover", i)
		if f.GetFrom() == f.GetTo() {
			at.at("to").failf("%q is also from; name another region", clip(f.GetTo()))
		}
		at.at("from").region(f.GetFrom())
		at.at("to").region(f.GetTo())
	}
}

func (c *checker) region(r string) {
	if strings.ContainsAny(r, "/*") {
		c.failf("%q is not a region; failover is between whole regions, without / and *", clip(r))
	}
}

// validateLocalities checks a list of localities REGION/ZONE/SUBZONE, of which
// the last part may be "*", and that none is for what an earlier one is for.
func validateLocalities(list []string, at func(int) *checker) {
	all := false
	seen := map[string]bool{}    // as they were written
	regions := map[string]bool{} // that anything was said of
	zones := map[string]bool{}   // REGION/ZONE that anything was said of
	whole := map[string]bool{}   // regions and zones that were taken whole
	for i, l := range list {
		parts := strings.SplitN(l, "/", 3)
		switch n := strings.Count(l, "*"); {
		case n > 1 || n == 1 && !strings.HasSuffix(l, "*"):
			at(i).failf(`%q has a "*" that is not the end; write as in region/*`, clip(l))
			return
		case slices.Contains(parts, ""):
			at(i).failf("%q has an empty part; write REGION, REGION/ZONE or REGION/ZONE/SUBZONE", clip(l))
			return
		}
		region, zone := parts[0], strings.Join(parts[:min(2, len(parts))], "/")
		taken := all || seen[l] || whole[region]
		switch len(parts) {
		case 1:
			taken = taken || regions[region]
			whole[region] = true
		case 2:
			taken = taken || whole[region+"/*"] || zones[zone]
			whole[zone] = true
		case 3:
			taken = taken || whole[region+"/*"] || whole[zone] || whole[zone+"/*"]
			if parts[2] == "*" {
				whole[zone+"/*"] = true
			}
		}
		if taken {
			at(i).failf("%q is within an earlier locality; remove one", clip(l))
			return
		}
		all, seen[l], regions[region], zones[zone] = l == "*", true, true, true
	}
}
