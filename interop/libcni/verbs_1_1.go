//go:build cni_1_1

// The verbs of version 1.1 of the specification, which libcni has since 1.2.

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func init() {
	verbs["status"] = func(ctx context.Context, cni *libcni.CNIConfig, network *libcni.NetworkConfigList, _ []string) (interface{}, error) {
		return nil, cni.GetStatusNetworkList(ctx, network)
	}
	verbs["gc"] = func(ctx context.Context, cni *libcni.CNIConfig, network *libcni.NetworkConfigList, words []string) (interface{}, error) {
		valid := []types.GCAttachment{}
		for _, word := range words {
			container, ifname, found := strings.Cut(word, "/")
			if !found {
				return nil, fmt.Errorf("%s has no interface", word)
			}
			valid = append(valid, types.GCAttachment{ContainerID: container, IfName: ifname})
		}
		return nil, cni.GCNetworkList(ctx, network, &libcni.GCArgs{ValidAttachments: valid})
	}
}
