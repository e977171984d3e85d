// Package helm runs helm itself on the charts: lint, template, install, upgrade,
// rollback and uninstall on a real API server. What isthmus install does with the
// same charts is the business of testenv/install. It is a module of its own,
// because helm's command brings much that nothing else needs; helm is a tool of
// that module, built once and taken from Go's cache then.
package helm
