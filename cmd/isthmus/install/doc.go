// Package install puts Isthmus into clusters and takes it out again: what the
// user's files ask for (values and IstioOperator files, [Input.Plan]), what a
// cluster must have before ([Preflight]), applying it and waiting until it
// works ([Installer.Install]), and removing exactly what was installed
// ([Installer.Uninstall]).
//
// It does not render (package manifests does) and knows no flags (package main
// does). It writes with server-side apply under one field manager, and touches
// nothing of somebody else's unless told to.
package install
