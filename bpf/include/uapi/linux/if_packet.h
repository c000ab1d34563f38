/* SPDX-License-Identifier: Apache-2.0 */
#ifndef NT_UAPI_LINUX_IF_PACKET_H
#define NT_UAPI_LINUX_IF_PACKET_H

#include <linux/types.h>

#endif
