//! What plugins can be told of.

use wharf_proto::nri::Event;

/// The bit of an event in a plugin's subscription.
pub const fn bit(event: Event) -> i32 {
    1 << (event as i32 - 1)
}

/// Every event.
pub const ALL: i32 = bit(Event::Last) - 1;

/// The method that tells of it.
pub fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

/// Whether a plugin that does not know the event's own method hears of it by `StateChange`, as all did once.
pub fn was_state_change(event: Event) -> bool {
    !matches!(
        event,
        Event::UpdatePodSandbox
            | Event::CreateContainer
            | Event::UpdateContainer
            | Event::StopContainer
            | Event::ValidateContainerAdjustment
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_protocol() {
        assert_eq!(bit(Event::RunPodSandbox), 1);
        assert_eq!(bit(Event::ValidateContainerAdjustment), 1 << 13);
        assert_eq!(ALL, (1 << 14) - 1);
    }
}
