// Package status tells the authors of Istio's objects what is wrong with them: it
// writes a condition into the status of objects that are refused, or of which parts
// are left out, and takes it away when the fault is gone.
//
// It owns who writes (one replica, which its caller elects), what the condition
// says, when (only about objects that have or had a fault, so many at a time, and
// never against somebody else for long), and what is left alone: other conditions,
// the rest of the status, objects of other revisions and of remote clusters. What
// is wrong is worked out elsewhere and handed in.
//
// The condition has a name of our own, and one for each revision. istiod's name,
// Reconciled, says how many proxies have an object, which is another question, and
// two control planes that write one condition would undo each other's work.
//
// It is written by a patch that holds for one version of the object, not by
// server-side apply: the resource definitions say nothing of how conditions merge,
// so that an API server takes the list for one value and whoever applies it takes
// it over with everybody's conditions in it. The validationMessages of a status
// belong to analysers; they have codes and no room for a field and a reason.
package status
