//go:build programs

// Package programs names the etcd server, so that go.mod holds what it needs.
package programs

import _ "go.etcd.io/etcd/server/v3"
