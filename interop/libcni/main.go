// A client of libcni, which does what a container runtime does with it: one verb for one attachment.
//
//	client add|check|del NETWORK NETNS CONTAINER [IFNAME]
//	client gc|status NETWORK [CONTAINER/IFNAME]...
//
// Networks are in /etc/cni/net.d, plugins in /opt/cni/bin, results in libcni's own place. CNI_ARGS and CAP_ARGS are as
// in cnitool. The result or the plugin's error object goes to stdout.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// Longer than the plugins wait for anything.
const deadline = 2 * time.Minute

// verbs of all versions of libcni; later ones add theirs.
var verbs = map[string]func(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList, []string) (interface{}, error){
	"add": func(ctx context.Context, cni *libcni.CNIConfig, network *libcni.NetworkConfigList, words []string) (interface{}, error) {
		container, err := attachment(words)
		if err != nil {
			return nil, err
		}
		return cni.AddNetworkList(ctx, network, container)
	},
	"check": func(ctx context.Context, cni *libcni.CNIConfig, network *libcni.NetworkConfigList, words []string) (interface{}, error) {
		container, err := attachment(words)
		if err != nil {
			return nil, err
		}
		return nil, cni.CheckNetworkList(ctx, network, container)
	},
	"del": func(ctx context.Context, cni *libcni.CNIConfig, network *libcni.NetworkConfigList, words []string) (interface{}, error) {
		container, err := attachment(words)
		if err != nil {
			return nil, err
		}
		return nil, cni.DelNetworkList(ctx, network, container)
	},
	"validate": func(ctx context.Context, cni *libcni.CNIConfig, network *libcni.NetworkConfigList, _ []string) (interface{}, error) {
		return cni.ValidateNetworkList(ctx, network)
	},
}

// attachment is what the words after the network's name mean to the verbs for one container.
func attachment(words []string) (*libcni.RuntimeConf, error) {
	if len(words) < 2 {
		return nil, errors.New("which namespace, and which container?")
	}
	container := &libcni.RuntimeConf{NetNS: words[0], ContainerID: words[1], IfName: "eth0"}
	if len(words) > 2 {
		container.IfName = words[2]
	}
	for _, pair := range strings.Split(os.Getenv("CNI_ARGS"), ";") {
		if name, value, found := strings.Cut(pair, "="); found {
			container.Args = append(container.Args, [2]string{name, value})
		}
	}
	if capabilities := os.Getenv("CAP_ARGS"); capabilities != "" {
		if err := json.Unmarshal([]byte(capabilities), &container.CapabilityArgs); err != nil {
			return nil, fmt.Errorf("CAP_ARGS: %w", err)
		}
	}
	return container, nil
}

func run(words []string) (interface{}, error) {
	if len(words) < 2 {
		return nil, errors.New("usage: client VERB NETWORK [WORD]...")
	}
	verb, found := verbs[words[0]]
	if !found {
		return nil, fmt.Errorf("this libcni has no %s", words[0])
	}
	network, err := libcni.LoadConfList("/etc/cni/net.d", words[1])
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	return verb(ctx, libcni.NewCNIConfig([]string{"/opt/cni/bin"}, nil), network, words[2:])
}

func main() {
	answer, err := run(os.Args[1:])
	status := 0
	if err != nil {
		status = 1
		var object *types.Error
		if errors.As(err, &object) {
			answer = object
		} else {
			answer = map[string]string{"msg": err.Error()}
		}
	}
	if answer != nil {
		if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	os.Exit(status)
}
