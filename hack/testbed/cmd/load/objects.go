// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// endpointsPerSlice is the default of upstream's controller.
const endpointsPerSlice = 100

// shape describes the objects.
type shape struct {
	namespace, node, nodeAddress, serviceType string
	services, endpoints, clients              int
	ipv6, pods                                bool
}

// loader creates, changes and deletes the objects of one shape.
type loader struct {
	client kubernetes.Interface
	shape
}

func (l *loader) serviceName(number int) string { return fmt.Sprintf("svc-%05d", number) }

// fill creates the node, the namespace and all services, and reports how long that took on stderr.
func (l *loader) fill(ctx context.Context) error {
	start := time.Now()
	if err := l.createNode(ctx); err != nil {
		return err
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.namespace}}
	_, err := l.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	if l.pods {
		// The controller skips Pods of nodes that do not exist.
		node := l.node
		for index := 1; index < 4; index++ {
			l.node = remoteNode(node, index)
			if err := l.createNode(ctx); err != nil {
				return err
			}
		}
		l.node = node
	}
	if err := l.each(ctx, l.addService); err != nil {
		return err
	}
	if l.pods {
		if err := l.waitForSlices(ctx); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "load: %d services with %d endpoints each in %.1f s\n",
		l.services, l.endpoints, time.Since(start).Seconds())
	return nil
}

// clear deletes all Services and slices of the namespace, but not the namespace, which needs a controller.
func (l *loader) clear(ctx context.Context) error {
	return l.each(ctx, func(ctx context.Context, number int) error {
		err := l.deleteService(ctx, number)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// each calls work for every Service number from `clients` goroutines; the first error cancels the rest.
func (l *loader) each(ctx context.Context, work func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	numbers := make(chan int)
	var workers sync.WaitGroup
	for range l.clients {
		workers.Go(func() {
			for number := range numbers {
				if err := work(ctx, number); err != nil {
					// The first cause wins; the other errors are cancellations.
					cancel(fmt.Errorf("%s: %w", l.serviceName(number), err))
					return
				}
			}
		})
	}
feed:
	for number := range l.services {
		select {
		case numbers <- number:
		case <-ctx.Done():
			break feed
		}
	}
	close(numbers)
	workers.Wait()
	return context.Cause(ctx)
}

func (l *loader) createNode(ctx context.Context) error {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name:   l.node,
			Labels: map[string]string{corev1.LabelHostname: l.node, corev1.LabelTopologyZone: "zone-a"},
		},
		Spec: corev1.NodeSpec{PodCIDRs: []string{"10.128.0.0/24"}, PodCIDR: "10.128.0.0/24"},
	}
	created, err := l.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// Addresses are status, which the API server ignores on creation.
	created.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: l.nodeAddress},
		{Type: corev1.NodeHostName, Address: l.node},
	}
	_, err = l.client.CoreV1().Nodes().UpdateStatus(ctx, created, metav1.UpdateOptions{})
	return err
}

func (l *loader) addService(ctx context.Context, number int) error {
	family := corev1.IPv4Protocol
	if l.ipv6 {
		family = corev1.IPv6Protocol
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: l.serviceName(number), Namespace: l.namespace},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceType(l.serviceType),
			IPFamilies: []corev1.IPFamily{family},
			Ports: []corev1.ServicePort{{
				Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP,
			}},
		},
	}
	if l.pods {
		service.Spec.Selector = map[string]string{"app": service.Name}
		for index := range l.endpoints {
			if err := l.addPod(ctx, number, index); err != nil {
				return err
			}
		}
	}
	if _, err := l.client.CoreV1().Services(l.namespace).Create(ctx, service, metav1.CreateOptions{}); err != nil || l.pods {
		return err
	}
	for first := 0; first == 0 || first < l.endpoints; first += endpointsPerSlice {
		slice, err := l.slice(number, first, min(first+endpointsPerSlice, l.endpoints))
		if err != nil {
			return err
		}
		_, err = l.client.DiscoveryV1().EndpointSlices(l.namespace).Create(ctx, slice, metav1.CreateOptions{})
		if err != nil {
			return err
		}
	}
	return nil
}

// addPod creates a Pod that no kubelet runs and writes the status that a kubelet would.
func (l *loader) addPod(ctx context.Context, number, index int) error {
	endpoint, err := l.endpoint(number, index)
	if err != nil {
		return err
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:      fmt.Sprintf("%s-%d", l.serviceName(number), index),
			Namespace: l.namespace,
			Labels:    map[string]string{"app": l.serviceName(number)},
		},
		Spec: corev1.PodSpec{
			NodeName:   *endpoint.NodeName,
			Containers: []corev1.Container{{Name: "server", Image: "none"}},
		},
	}
	pods := l.client.CoreV1().Pods(l.namespace)
	created, err := pods.Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	created.Status = corev1.PodStatus{
		Phase:      corev1.PodRunning,
		PodIP:      endpoint.Addresses[0],
		PodIPs:     []corev1.PodIP{{IP: endpoint.Addresses[0]}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	_, err = pods.UpdateStatus(ctx, created, metav1.UpdateOptions{})
	return err
}

// waitForSlices waits until the controller has put every Pod into a slice.
func (l *loader) waitForSlices(ctx context.Context) error {
	for {
		slices, err := l.client.DiscoveryV1().EndpointSlices(l.namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		found := 0
		for _, slice := range slices.Items {
			found += len(slice.Endpoints)
		}
		if found >= l.services*l.endpoints {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d endpoints are in slices: %w", found, l.services*l.endpoints, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// deleteService deletes the slices first: there is no controller to do it.
func (l *loader) deleteService(ctx context.Context, number int) error {
	ofService := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + l.serviceName(number)}
	err := l.client.DiscoveryV1().EndpointSlices(l.namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, ofService)
	if err != nil {
		return err
	}
	return l.client.CoreV1().Services(l.namespace).Delete(ctx, l.serviceName(number), metav1.DeleteOptions{})
}

func (l *loader) addEndpoint(ctx context.Context, number int) error {
	return l.changeSlice(ctx, number, func(slice *discoveryv1.EndpointSlice) error {
		// After those that fill created and those added before.
		endpoint, err := l.endpoint(number, l.endpoints+len(slice.Endpoints))
		if err != nil {
			return err
		}
		slice.Endpoints = append(slice.Endpoints, endpoint)
		return nil
	})
}

func (l *loader) removeEndpoint(ctx context.Context, number int) error {
	return l.changeSlice(ctx, number, func(slice *discoveryv1.EndpointSlice) error {
		if len(slice.Endpoints) == 0 {
			return errors.New("has no endpoint to remove")
		}
		slice.Endpoints = slice.Endpoints[:len(slice.Endpoints)-1]
		return nil
	})
}

// changeSlice changes the first slice of a service.
func (l *loader) changeSlice(ctx context.Context, number int, change func(*discoveryv1.EndpointSlice) error) error {
	slices := l.client.DiscoveryV1().EndpointSlices(l.namespace)
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		slice, err := slices.Get(ctx, l.sliceName(number, 0), metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := change(slice); err != nil {
			return fmt.Errorf("%s: %w", slice.Name, err)
		}
		_, err = slices.Update(ctx, slice, metav1.UpdateOptions{})
		return err
	})
}

func (l *loader) sliceName(number, first int) string {
	return fmt.Sprintf("%s-%d", l.serviceName(number), first/endpointsPerSlice)
}

// slice has the endpoints first .. end-1 of a Service.
func (l *loader) slice(number, first, end int) (*discoveryv1.EndpointSlice, error) {
	addressType := discoveryv1.AddressTypeIPv4
	if l.ipv6 {
		addressType = discoveryv1.AddressTypeIPv6
	}
	name, port, protocol := "http", int32(8080), corev1.ProtocolTCP
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name:      l.sliceName(number, first),
			Namespace: l.namespace,
			Labels: map[string]string{
				discoveryv1.LabelServiceName: l.serviceName(number),
				discoveryv1.LabelManagedBy:   "load.kube-proxy-rs",
			},
		},
		AddressType: addressType,
		Endpoints:   []discoveryv1.Endpoint{},
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
	}
	for index := first; index < end; index++ {
		endpoint, err := l.endpoint(number, index)
		if err != nil {
			return nil, err
		}
		slice.Endpoints = append(slice.Endpoints, endpoint)
	}
	return slice, nil
}

// endpoint has a unique address in 10.128.0.0/9 or fd00:128::/64: up to 256 per Service, or 1,024 for each
// of the first 4,096.
func (l *loader) endpoint(number, index int) (discoveryv1.Endpoint, error) {
	if number >= 1<<15 || index >= 1<<10 || (number >= 1<<12 && index >= 1<<8) {
		return discoveryv1.Endpoint{}, fmt.Errorf("no address for endpoint %d of service %d", index, number)
	}
	address := netip.AddrFrom4([4]byte{10, 128 | byte(index>>8<<4) | byte(number>>8), byte(number), byte(index)})
	if l.ipv6 {
		address = netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x01, 3: 0x28, 12: byte(index >> 8), 13: byte(number >> 8), 14: byte(number), 15: byte(index)})
	}
	node := l.node
	if index%4 != 0 {
		node = remoteNode(l.node, index%4)
	}
	yes, no := true, false
	return discoveryv1.Endpoint{
		Addresses:  []string{address.String()},
		NodeName:   &node,
		Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
	}, nil
}

// remoteNode names a node other than the proxy's.
func remoteNode(node string, index int) string { return fmt.Sprintf("%s-remote-%d", node, index) }
