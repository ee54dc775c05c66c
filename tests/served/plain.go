package main

import (
	"context"
	"net"
	"net/http"
	"syscall"
)

// Takes SO_REUSEADDR away, which package net has set.
func plain(network, address string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 0)
	})
}

func main() {
	config := net.ListenConfig{Control: plain}
	listener, err := config.Listen(context.Background(), "tcp", ":8000")
	if err != nil {
		panic(err)
	}
	panic(http.Serve(listener, nil))
}
