/* The least that sending G.711 streams costs: a bare loop around sendmmsg, the peer of
 * bench/streams.py.
 *
 * usage: sendmmsg_loop STREAMS SOCKETS SECONDS FAR_PORT...
 *
 * STREAMS streams, spread over SOCKETS sockets and the 20 ms, go to the ports of 127.0.0.1; each
 * tick counts the headers on and makes one system call a socket. Prints packets and CPU seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

enum { SLOTS = 10, PAYLOAD = 160, CLIP_PACKETS = 3000 };

struct header {
    uint8_t first, kind;
    uint16_t sequence;
    uint32_t timestamp, ssrc;
};

struct stream {
    struct header header;
    struct sockaddr_in far;
    struct iovec parts[2];
    uint32_t packet;
};

static double seconds_of(struct timeval t) { return t.tv_sec + t.tv_usec / 1e6; }

static double cpu(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return seconds_of(used.ru_utime) + seconds_of(used.ru_stime);
}

static void *zeroed(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) {
        perror("calloc");
        exit(1);
    }
    return memory;
}

int main(int argc, char **argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: %s STREAMS SOCKETS SECONDS FAR_PORT...\n", argv[0]);
        return 2;
    }
    int streams = atoi(argv[1]), sockets = atoi(argv[2]), fars = argc - 4;
    long ticks = (long)(atof(argv[3]) * 1000 / 20) * SLOTS;
    int *descriptors = zeroed(sockets, sizeof *descriptors);
    struct stream *all = zeroed(streams, sizeof *all);
    struct mmsghdr *messages = zeroed(streams, sizeof *messages);
    uint8_t *clip = zeroed(CLIP_PACKETS, PAYLOAD);
    for (int i = 0; i < CLIP_PACKETS * PAYLOAD; i++)
        clip[i] = (uint8_t)rand();
    for (int i = 0; i < sockets; i++) {
        struct sockaddr_in local = {.sin_family = AF_INET};
        int room = 4 << 20, discover = IP_PMTUDISC_DO;
        local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        descriptors[i] = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(descriptors[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
        setsockopt(descriptors[i], IPPROTO_IP, IP_MTU_DISCOVER, &discover, sizeof discover);
        if (descriptors[i] < 0 || bind(descriptors[i], (void *)&local, sizeof local)) {
            perror("bind");
            return 1;
        }
    }
    for (int i = 0; i < streams; i++) {
        struct stream *s = &all[i];
        s->header = (struct header){0x80, 8, (uint16_t)rand(), rand(), rand()};
        s->far.sin_family = AF_INET;
        s->far.sin_port = htons(atoi(argv[4 + i % fars]));
        s->far.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        s->parts[0] = (struct iovec){&s->header, sizeof s->header};
        s->parts[1] = (struct iovec){clip, PAYLOAD};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &s->far, .msg_namelen = sizeof s->far, .msg_iov = s->parts, .msg_iovlen = 2};
    }
    struct timespec due;
    clock_gettime(CLOCK_MONOTONIC, &due);
    double began = cpu();
    long sent = 0;
    for (long tick = 0; tick < ticks; tick++) {
        long slot = tick % SLOTS, first = streams * slot / SLOTS, end = streams * (slot + 1) / SLOTS;
        /* A socket's streams are put into one slot as far as there are sockets enough. */
        int from = sockets >= SLOTS ? sockets * slot / SLOTS : slot % sockets;
        int to = sockets >= SLOTS ? sockets * (slot + 1) / SLOTS : from + 1;
        for (int i = from; i < to; i++) {
            long begin = first + (end - first) * (i - from) / (to - from);
            long stop = first + (end - first) * (i - from + 1) / (to - from);
            while (begin < stop) {
                int n = sendmmsg(descriptors[i], messages + begin, stop - begin, MSG_DONTWAIT);
                if (n <= 0)
                    break;
                sent += n;
                begin += n;
            }
        }
        for (long i = first; i < end; i++) {
            struct stream *s = &all[i];
            s->packet = (s->packet + 1) % CLIP_PACKETS;
            s->parts[1].iov_base = clip + s->packet * PAYLOAD;
            s->header.sequence = htons(ntohs(s->header.sequence) + 1);
            s->header.timestamp = htonl(ntohl(s->header.timestamp) + PAYLOAD);
        }
        due.tv_nsec += 20 * 1000 * 1000 / SLOTS;
        if (due.tv_nsec >= 1000 * 1000 * 1000) {
            due.tv_nsec -= 1000 * 1000 * 1000;
            due.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
    }
    printf("%ld %.6f\n", sent, cpu() - began);
    return 0;
}
