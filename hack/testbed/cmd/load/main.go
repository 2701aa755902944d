// SPDX-License-Identifier: Apache-2.0

// Command load fills a test bed with Services and EndpointSlices and makes single changes to them, for
// benchmarks and for tests that need many objects. Each change prints the time of the API server's
// response, from which a reader of the kernel computes the latency. `load control` lets a test inside a
// guest stop and start the API server outside.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const usage = `usage: load [OPTION]... COMMAND

  fill                    create the node, the namespace and services 0 .. N-1 with their endpoints
  clear                   delete what fill created
  service add|delete K    create service K with its endpoints, or delete it
  endpoint add|remove K   give service K one endpoint more, or take the last one away
  node NAME               create a Node with an address
  control                 serve POST /apiserver/stop and /apiserver/start (--listen, --testbed)

A change prints one line: the time when the API server had answered (RFC 3339, nanoseconds), and what it was.
`

func main() {
	// The first signal stops the work gracefully, the second one kills the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "load: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var s shape
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, usage, "\noptions:\n")
		flag.PrintDefaults()
	}
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig of the API server")
	listen := flag.String("listen", "", "address and port for control to listen on")
	testbed := flag.String("testbed", "", "directory of the test bed that control stops and starts")
	flag.StringVar(&s.namespace, "namespace", "load", "namespace of the Services")
	flag.IntVar(&s.services, "services", 1000, "number of Services")
	flag.IntVar(&s.endpoints, "endpoints", 10, "endpoints per Service")
	flag.IntVar(&s.clients, "clients", 4, "parallel clients of fill and clear")
	flag.StringVar(&s.node, "node", "node-a", "node of every fourth endpoint")
	flag.StringVar(&s.nodeAddress, "node-address", "192.0.2.10", "internal address of the node")
	flag.StringVar(&s.serviceType, "type", "ClusterIP", "type of the Services")
	flag.BoolVar(&s.ipv6, "ipv6", false, "IPv6 Services and endpoints")
	flag.BoolVar(&s.pods, "pods", false, "fill creates Pods with a patched status; slices come from the EndpointSlice controller")
	flag.Parse()
	args := flag.Args()
	if len(args) == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if args[0] == "control" {
		return control(ctx, *listen, *testbed)
	}

	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	// The API server's priority and fairness is the limit, not the client's.
	config.QPS, config.Burst = -1, -1
	config.Timeout = time.Minute
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	l := loader{client: client, shape: s}

	switch {
	case args[0] == "fill" && len(args) == 1:
		return l.fill(ctx)
	case args[0] == "clear" && len(args) == 1:
		return l.clear(ctx)
	case args[0] == "node" && len(args) == 2:
		l.node = args[1]
		return l.createNode(ctx)
	case len(args) == 3:
		var number int
		if _, err := fmt.Sscanf(args[2], "%d", &number); err != nil || number < 0 {
			return fmt.Errorf("%q is not the number of a Service", args[2])
		}
		change, known := map[string]func(context.Context, int) error{
			"service add":     l.addService,
			"service delete":  l.deleteService,
			"endpoint add":    l.addEndpoint,
			"endpoint remove": l.removeEndpoint,
		}[args[0]+" "+args[1]]
		if !known {
			flag.Usage()
			os.Exit(2)
		}
		if err := change(ctx, number); err != nil {
			return err
		}
		fmt.Println(time.Now().UTC().Format(time.RFC3339Nano), args[0], args[1], l.serviceName(number))
		return nil
	default:
		flag.Usage()
		os.Exit(2)
		return nil
	}
}
